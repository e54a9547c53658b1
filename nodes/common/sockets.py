"""The types of our sockets, and our folder in ComfyUI's menu."""

from comfy_api.v0_0_2 import io

# nodes/render defines the types of the shared inputs, because it imports nothing from this folder
from ..render.widgets import OutputOptions as OutputOptions
from ..render.widgets import RenderAgain as RenderAgain

CATEGORY = "StillMotion"
ArtvModel = io.Custom("STILLMOTION_ARTV")
MotionModel = io.Custom("STILLMOTION_MOTION_MODEL")
GuidanceReadout = io.Custom("STILLMOTION_GUIDANCE_READOUT")
RetentionBranch = io.Custom("STILLMOTION_RETENTION_BRANCH")
SparseNetwork = io.Custom("STILLMOTION_SPARSECTRL")
Story = io.Custom("STILLMOTION_STORY")
Prompts = io.Custom("STILLMOTION_PROMPT_SCHEDULE")
StagePrompts = io.Custom("STILLMOTION_STAGE_PROMPTS")
ReuseOptions = io.Custom("STILLMOTION_REUSE_OPTIONS")
ArtvOptions = io.Custom("STILLMOTION_ARTV_OPTIONS")
StageOptions = io.Custom("STILLMOTION_STAGE_OPTIONS")
GradientOptions = io.Custom("STILLMOTION_GRADIENT_OPTIONS")
