"""What the user sees. Each file is one menu group and ends with its list of nodes."""

import logging
from typing import Any

from comfy_api.v0_0_2 import ComfyExtension, io

from ..model_patches.comfy_host.base import host
from ..rendering.graph import savers_of
from . import artv, decoder, dreamvideo, guidance, long, motion, options, pocket, sampling, sparse, stages, views

GROUPS = (pocket, motion, decoder, guidance, dreamvideo, stages, sampling, sparse, long, artv, options, views)

log = logging.getLogger(__name__)


class StillMotionExtension(ComfyExtension):
    async def on_load(self) -> None:
        """Compare the host with what the pack needs, and look at every graph that is queued, through ComfyUI's public
        list of handlers."""
        check_host()
        from server import PromptServer  # ComfyUI's own, which needs a running server

        if server := getattr(PromptServer, "instance", None):
            server.add_on_prompt_handler(warn_of_saved_models)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for group in GROUPS for node in group.NODES]


def check_host() -> None:
    """Name the parts of ComfyUI that the pack uses and this version does not have."""
    if lines := host.missing():
        log.error(
            "StillMotion: this version of ComfyUI does not have %s; update StillMotion, or what needs them fails",
            ", ".join(lines),
        )


def warn_of_saved_models(request: dict[str, Any]) -> dict[str, Any]:
    """Warn when a node saves a MODEL with a motion model: ComfyUI writes the image model alone, without a word."""
    prompt: Any = request.get("prompt")
    node = motion.ApplyMotionModel.define_schema().node_id
    for number in savers_of(prompt, node) if isinstance(prompt, dict) else ():
        log.warning(
            "%s (node %s): the motion model will not be in the file, because ComfyUI saves the image model alone; keep "
            "the motion model's own file, and connect Apply Motion Model after loading",
            prompt[number]["class_type"],
            number,
        )
    return request
