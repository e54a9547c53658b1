"""The bundled pocket model."""

# V3 nodes take their inputs by name, so every `execute` has its own signature.
# pyright: reportIncompatibleMethodOverride=false

from pathlib import Path

from comfy_api.latest import io

from ..model_patches.comfy_host.pocket import load_pocket
from .sockets import CATEGORY

POCKET = Path(__file__).resolve().parents[1] / "pocket" / "pocket.safetensors"


class LoadPocket(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadPocket",
            display_name="Load Pocket Stable Diffusion",
            category=f"{CATEGORY}/loaders",
            description="The small Stable Diffusion that comes with StillMotion: 64x64 pictures of coloured shapes, for"
            " trying graphs out without a download. Gives what a checkpoint loader gives; stock nodes work with it.",
            inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls) -> tuple[int, int]:
        status = POCKET.stat()
        return status.st_mtime_ns, status.st_size

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_pocket(POCKET))


NODES = [LoadPocket]
