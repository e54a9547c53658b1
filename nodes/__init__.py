"""What the user sees. Each file is one menu group and ends with its list of nodes."""

from comfy_api.latest import ComfyExtension, io

from . import guidance, long, motion, pocket, sampling, views


class StillMotionExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*pocket.NODES, *motion.NODES, *guidance.NODES, *sampling.NODES, *long.NODES, *views.NODES]
