"""The bundled pocket model, its ControlNet, and its LoRAs in the lists of ComfyUI's own LoRA nodes."""

# V3 nodes take their inputs by name, so every `execute` has its own signature.
# pyright: reportIncompatibleMethodOverride=false

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..model_patches.comfy_host.pocket import load_pocket, load_pocket_control
from .sockets import CATEGORY

BUNDLE = Path(__file__).resolve().parents[1] / "pocket"
POCKET, CONTROL = BUNDLE / "pocket.safetensors", BUNDLE / "control_edges.safetensors"

folder_paths.add_model_folder_path("loras", str(BUNDLE / "loras"))


class LoadPocket(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadPocket",
            display_name="Load Pocket Stable Diffusion",
            category=f"{CATEGORY}/loaders",
            description="The small Stable Diffusion that comes with StillMotion: 64x64 pictures of coloured shapes, for"
            " trying graphs out without a download. Gives what a checkpoint loader gives; stock nodes work with it.",
            search_aliases=["checkpoint loader", "demo model", "test model", "pocket"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The U-Net: 64 x 64 pixels, predicts eps."),
                io.Clip.Output(tooltip="The text encoder, for CLIP Text Encode."),
                io.Vae.Output(tooltip="The autoencoder, for VAE Encode and VAE Decode."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> tuple[int, int]:
        return _fingerprint(POCKET)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_pocket(POCKET))


class LoadPocketControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadPocketControlNet",
            display_name="Load Pocket ControlNet",
            category=f"{CATEGORY}/loaders",
            description="The edge ControlNet of the pocket Stable Diffusion: its sprites keep to white edges on black, "
            "as the Canny node draws them. For Apply ControlNet; ControlNet Frames limits it to a few frames.",
            search_aliases=["canny", "edges", "ControlNet"],
            inputs=[],
            outputs=[io.ControlNet.Output(tooltip="The ControlNet; connect it to Apply ControlNet.")],
        )

    @classmethod
    def fingerprint_inputs(cls) -> tuple[int, int]:
        return _fingerprint(CONTROL)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_pocket_control(CONTROL))


def _fingerprint(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


NODES = [LoadPocket, LoadPocketControlNet]
