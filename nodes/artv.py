"""StillMotion/loaders: ART-V, which makes a video one frame at a time."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from pathlib import Path

from comfy_api.latest import io

from ..model_patches.comfy_host.artv import load_artv
from . import files
from .sockets import CATEGORY, ArtvModel

FOLDERS = (files.OWN,)
BUNDLED = {"pocket/artv.safetensors": files.POCKET / "artv.safetensors"}

files.add_folder(files.OWN)


def artv_path(name: str) -> Path:
    """The file behind a name of the list. ValueError when it has gone, naming the folders that were searched."""
    return files.path_of(name, FOLDERS, BUNDLED, "ART-V model")


class LoadArtvModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadArtvModel",
            display_name="Load ART-V Model",
            category=f"{CATEGORY}/loaders",
            description="Reads an ART-V model: what lets an image model draw the frame after two others, and the mask "
            "network that copies what does not move.",
            search_aliases=["ART-V", "autoregressive", "frame by frame", "image to video"],
            inputs=[
                io.Combo.Input(
                    "artv_name",
                    options=files.names(FOLDERS, BUNDLED),
                    tooltip="A StillMotion ART-V file of models/stillmotion, or the bundled one for the pocket Stable "
                    "Diffusion.",
                ),
            ],
            outputs=[
                ArtvModel.Output("artv_model", tooltip="For Autoregressive Video."),
                io.String.Output("info", tooltip="What the file was taken for, and its sizes."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, artv_name: str) -> tuple[int, int]:
        return files.fingerprint(artv_path(artv_name))

    @classmethod
    def execute(cls, artv_name: str) -> io.NodeOutput:
        artv = load_artv(artv_path(artv_name))
        return io.NodeOutput(artv, artv.info)


NODES = [LoadArtvModel]
