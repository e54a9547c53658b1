"""What the user sees. Each file is one menu group and ends with its list of nodes."""

from comfy_api.latest import ComfyExtension, io

from . import artv, decoder, dreamvideo, guidance, long, motion, options, pocket, sampling, sparse, stages, views

GROUPS = (pocket, motion, decoder, guidance, dreamvideo, stages, sampling, sparse, long, artv, options, views)


class StillMotionExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for group in GROUPS for node in group.NODES]
