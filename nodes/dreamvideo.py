"""StillMotion/loaders and StillMotion/image to video: DreamVideo's branch and its guidance."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from pathlib import Path

from comfy_api.latest import io

from ..model_patches.comfy_host.dreamvideo.guider import double_condition_guider
from ..model_patches.comfy_host.dreamvideo.retention import apply_retention, load_branch
from ..model_patches.dreamvideo.guidance import DEFAULT_SCALE, ORDERS, TEXT_FIRST
from ..model_patches.dreamvideo.image import FITS
from . import files
from .files import POCKET
from .sockets import CATEGORY, RetentionBranch

FOLDERS = (files.OWN,)
BUNDLED = {"pocket/dreamvideo.safetensors": POCKET / "dreamvideo.safetensors"}
GROUP = f"{CATEGORY}/image to video"

files.add_folder(files.OWN)


def branch_path(name: str) -> Path:
    """The file behind a name of the list. ValueError when it has gone, naming the folders that were searched."""
    return files.path_of(name, FOLDERS, BUNDLED, "retention branch")


class LoadRetentionBranch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadRetentionBranch",
            display_name="Load Retention Branch",
            category=f"{CATEGORY}/loaders",
            description="Reads the part of a DreamVideo file that keeps a video to an image. It works with any motion "
            "model for the same base; Load Motion Model reads the motion model in such a file, where it has one.",
            search_aliases=["DreamVideo", "image to video", "image retention", "I2V"],
            inputs=[
                io.Combo.Input(
                    "branch_name",
                    options=files.names(FOLDERS, BUNDLED),
                    tooltip="A DreamVideo file of models/stillmotion, or a bundled one for the pocket Stable "
                    "Diffusion.",
                ),
            ],
            outputs=[
                RetentionBranch.Output("retention_branch", tooltip="For Apply Image Retention."),
                io.String.Output("info", tooltip="What the file was taken for, and its sizes."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, branch_name: str) -> tuple[int, int]:
        return files.fingerprint(branch_path(branch_name))

    @classmethod
    def execute(cls, branch_name: str) -> io.NodeOutput:
        branch = load_branch(branch_path(branch_name))
        return io.NodeOutput(branch, branch.info)


class ApplyImageRetention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ApplyImageRetention",
            display_name="Apply Image Retention",
            category=GROUP,
            description="Makes the video begin with an image, and keep to it. It is a ControlNet to ComfyUI: others "
            "can stand before and behind it.",
            search_aliases=["DreamVideo", "image to video", "I2V", "first frame"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The text. An empty prompt leaves it to the image alone."),
                io.Conditioning.Input("negative", tooltip="What to guide away from: an empty prompt, as in training."),
                RetentionBranch.Input("retention_branch", tooltip="From Load Retention Branch."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="One image. Without it the image is white, which is how the branch knows none: the video "
                    "is made from the text alone.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Factor on what the branch adds to the model, no unit. 1 is as trained, 0 is off.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where the branch starts, as a fraction of the sampling: 0 is the first step.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where it ends, as a fraction of the sampling: 1 is the last step.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=FITS[0],
                    tooltip="What happens to an image of another aspect than the video. crop: its middle is kept. pad: "
                    "white edges are added. stretch: it is stretched. The log tells when it was done.",
                ),
            ],
            outputs=[io.Conditioning.Output("positive"), io.Conditioning.Output("negative")],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        retention_branch,
        strength: float,
        start_percent: float,
        end_percent: float,
        fit: str,
        image=None,
    ) -> io.NodeOutput:
        part = {"start_percent": start_percent, "end_percent": end_percent}
        conditions = (positive, negative)
        return io.NodeOutput(*apply_retention(conditions, retention_branch, image, strength=strength, rule=fit, **part))


class DoubleConditionGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_DoubleConditionGuider",
            display_name="Double-Condition Guider",
            category=GROUP,
            description="Guides by text and by image, each with a scale of its own (DreamVideo, Eq. 5). Three "
            "predictions in one batch when memory allows; those that a scale leaves out are not made.",
            search_aliases=["DreamVideo", "dual CFG", "image guidance scale", "InstructPix2Pix"],
            inputs=[
                io.Model.Input("model", tooltip="The model with its motion model on it."),
                io.Conditioning.Input("positive", tooltip="The text, with the image: from Apply Image Retention."),
                io.Conditioning.Input("negative", tooltip="The null text, an empty prompt, with the image or without."),
                io.Float.Input(
                    "text_scale",
                    default=DEFAULT_SCALE,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="s_t, no unit: how far to go from no text to the text. 1 is no guidance. The paper gives "
                    "no value.",
                ),
                io.Float.Input(
                    "image_scale",
                    default=DEFAULT_SCALE,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="s_i, no unit: how far to go from a white image to the image. Far below the text "
                    "scale, the text overrules the image; contrast grows with it, 15 is burnt (the paper's figure).",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default=TEXT_FIRST,
                    advanced=True,
                    tooltip="text first: Eq. 5, the image is guided from a prediction that has the text. image first: "
                    "the other way round, which the paper does not print.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced, or Long Video.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, text_scale: float, image_scale: float, order: str = TEXT_FIRST
    ) -> io.NodeOutput:
        guider = double_condition_guider(model, positive, negative, text=text_scale, image=image_scale, order=order)
        return io.NodeOutput(guider)


NODES = [LoadRetentionBranch, ApplyImageRetention, DoubleConditionGuider]
