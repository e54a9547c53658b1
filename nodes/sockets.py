"""Sockets of our own, and the folder in ComfyUI's menu."""

from comfy_api.latest import io

CATEGORY = "StillMotion"
ArtvModel = io.Custom("STILLMOTION_ARTV")
MotionModel = io.Custom("STILLMOTION_MOTION_MODEL")
GuidanceReadout = io.Custom("STILLMOTION_GUIDANCE_READOUT")
RetentionBranch = io.Custom("STILLMOTION_RETENTION_BRANCH")
Story = io.Custom("STILLMOTION_STORY")
Prompts = io.Custom("STILLMOTION_PROMPT_SCHEDULE")
StagePrompts = io.Custom("STILLMOTION_STAGE_PROMPTS")
RenderAgain = io.Custom("STILLMOTION_RENDER_AGAIN")
OutputOptions = io.Custom("STILLMOTION_OUTPUT_OPTIONS")
ReuseOptions = io.Custom("STILLMOTION_REUSE_OPTIONS")
ArtvOptions = io.Custom("STILLMOTION_ARTV_OPTIONS")
StageOptions = io.Custom("STILLMOTION_STAGE_OPTIONS")
GradientOptions = io.Custom("STILLMOTION_GRADIENT_OPTIONS")
