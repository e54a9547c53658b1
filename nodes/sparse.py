"""StillMotion/control: images on some frames of a clip, by a SparseCtrl network."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..model_patches.comfy_host.conditions.control import parse_frames
from ..model_patches.comfy_host.sparsectrl.control import FITS, apply_sparse, load_sparse
from .common import files
from .common.sockets import CATEGORY, SparseNetwork
from .render import widgets

FOLDERS = (files.OWN, "controlnet", "animatediff_models")
GROUP = f"{CATEGORY}/control"

for name in FOLDERS:
    files.add_folder(name)


def sparse_path(name: str) -> Path:
    """The path of a listed file. ValueError, with the folders that were searched, when it no longer exists."""
    return files.path_of(name, FOLDERS, {}, "SparseCtrl")


class LoadSparseCtrl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadSparseCtrl",
            display_name="Load SparseCtrl",
            category=f"{CATEGORY}/loaders",
            description="Loads a SparseCtrl network for SD 1.5, which puts images on some frames of a clip: RGB "
            "images, or scribbles. AnimateDiff v3 was made for it.",
            search_aliases=["AnimateDiff", "SparseCtrl", "image to video", "interpolation", "scribble"],
            inputs=[
                io.Combo.Input(
                    "sparse_name",
                    options=files.names(FOLDERS, {}),
                    tooltip="A SparseCtrl file in models/controlnet, models/animatediff_models or models/stillmotion, "
                    "such as v3_sd15_sparsectrl_rgb.ckpt.",
                ),
            ],
            outputs=[
                SparseNetwork.Output("sparsectrl", tooltip="The network; connect it to Apply SparseCtrl."),
                io.String.Output("info", tooltip="Kind of the file and its longest clip in frames, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, sparse_name: str | None = None) -> bool | str:
        return files.validated(sparse_path, sparse_name)

    @classmethod
    def fingerprint_inputs(cls, sparse_name: str) -> tuple[int, int]:
        return files.fingerprint(sparse_path(sparse_name))

    @classmethod
    def execute(cls, sparse_name: str) -> io.NodeOutput:
        network = load_sparse(sparse_path(sparse_name))
        return io.NodeOutput(network, network.info)


class ApplySparseCtrl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ApplySparseCtrl",
            display_name="Apply SparseCtrl",
            category=GROUP,
            description="Puts images on some frames of a clip: one image on the first frame is image to video, two on "
            "the first and the last frame are interpolation. It acts like a ControlNet and can be chained with "
            "ControlNets.",
            search_aliases=[
                "SparseCtrl",
                "image to video",
                "I2V",
                "first and last frame",
                "keyframes",
                "interpolation",
            ],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The positive conditioning."),
                io.Conditioning.Input("negative", tooltip="The negative conditioning."),
                SparseNetwork.Input("sparsectrl", tooltip="The output of Load SparseCtrl."),
                io.Image.Input(
                    "images",
                    tooltip="One image for each frame that is listed, in their order, or one image for all of them. "
                    "For a scribble network: white lines on black.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="The VAE of the checkpoint. A network for RGB images needs it."
                ),
                io.String.Input(
                    "frames_with_image",
                    default="0",
                    tooltip="Frame numbers, counted from 0; -1 is the last frame. A range 4:8 is 4 to 7. A weight for "
                    "a frame: 0=1, -1=0.5. all: every frame.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=100000,
                    tooltip="Number of frames of one clip, as in Apply Motion Model. For a long video: of the whole "
                    "video.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the network, a factor without unit. 1 is as trained, 0 is off.",
                ),
                *widgets.percents("network"),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=FITS[0],
                    tooltip="What to do when an image and the video have different aspect ratios. crop: keep the "
                    "middle of the image. pad: add white edges. stretch: stretch the image.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive_out", tooltip="The positive conditioning with the images."),
                io.Conditioning.Output("negative_out", tooltip="The negative conditioning with the images."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        sparsectrl,
        images,
        frames_with_image: str,
        frames: int,
        strength: float,
        start_percent: float,
        end_percent: float,
        fit: str,
        vae=None,
    ) -> io.NodeOutput:
        conditions = apply_sparse(
            (positive, negative),
            sparsectrl,
            images,
            parse_frames(frames_with_image, frames, "SparseCtrl"),
            frames,
            vae=vae,
            strength=strength,
            start_percent=start_percent,
            end_percent=end_percent,
            rule=fit,
        )
        return io.NodeOutput(*conditions)


NODES = [LoadSparseCtrl, ApplySparseCtrl]
