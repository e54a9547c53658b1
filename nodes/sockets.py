"""Sockets of our own, and the folder in ComfyUI's menu."""

from comfy_api.latest import io

CATEGORY = "StillMotion"
MotionModel = io.Custom("STILLMOTION_MOTION_MODEL")
GuidanceReadout = io.Custom("STILLMOTION_GUIDANCE_READOUT")
ArtvModel = io.Custom("STILLMOTION_ARTV")
Story = io.Custom("STILLMOTION_STORY")
Prompts = io.Custom("STILLMOTION_PROMPT_SCHEDULE")
