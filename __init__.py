"""StillMotion: still-image diffusion models become video models inside ComfyUI.

ComfyUI imports this package by path, under a name of its own; nothing is imported here until it asks for the nodes.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import StillMotionExtension

    return StillMotionExtension()
