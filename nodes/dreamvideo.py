"""StillMotion/loaders and StillMotion/image to video: DreamVideo's retention branch and its guider."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..model_patches.comfy_host.dreamvideo.guider import double_condition_guider
from ..model_patches.comfy_host.dreamvideo.retention import apply_retention, load_branch
from ..model_patches.core.pictures import FITS
from ..model_patches.dreamvideo.guidance import DEFAULT_SCALE, ORDERS, TEXT_FIRST
from .common import files
from .common.files import POCKET
from .common.sockets import CATEGORY, RetentionBranch
from .render import widgets

FOLDERS = (files.OWN,)
BUNDLED = {"pocket/dreamvideo.safetensors": POCKET / "dreamvideo.safetensors"}
GROUP = f"{CATEGORY}/image to video"

files.add_folder(files.OWN)


def branch_path(name: str) -> Path:
    """The path of a listed file. ValueError, with the folders that were searched, when it no longer exists."""
    return files.path_of(name, FOLDERS, BUNDLED, "retention branch")


class LoadRetentionBranch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LoadRetentionBranch",
            display_name="Load Retention Branch",
            category=f"{CATEGORY}/loaders",
            description="Loads the image-retention branch of a DreamVideo file, which makes a video follow an image. "
            "It works with every motion model for the same base model. Load Motion Model loads the motion model of "
            "the same file, if it has one.",
            search_aliases=["DreamVideo", "image to video", "image retention", "I2V"],
            inputs=[
                io.Combo.Input(
                    "branch_name",
                    options=files.names(FOLDERS, BUNDLED),
                    tooltip="A DreamVideo file in models/stillmotion, or a bundled one for the pocket Stable "
                    "Diffusion.",
                ),
            ],
            outputs=[
                RetentionBranch.Output("retention_branch", tooltip="The branch; connect it to Apply Image Retention."),
                io.String.Output("info", tooltip="Kind of the file and its sizes, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, branch_name: str | None = None) -> bool | str:
        return files.validated(branch_path, branch_name)

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
            description="Image to video (DreamVideo): the video starts with an image and keeps its look. It acts like "
            "a ControlNet and can be chained with other ControlNets.",
            search_aliases=["DreamVideo", "image to video", "I2V", "first frame"],
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="The conditioning of the prompt. With an empty prompt the image alone decides."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative conditioning: an empty prompt, as in training."
                ),
                RetentionBranch.Input("retention_branch", tooltip="The output of Load Retention Branch."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="One image, the first frame of the video. Leave it unconnected for text only (the branch "
                    "then gets a white image, as in training).",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the branch, a factor without unit. 1 is as trained, 0 is off.",
                ),
                *widgets.percents("branch"),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=FITS[0],
                    tooltip="What to do when the image and the video have different aspect ratios. crop: keep the "
                    "middle of the image. pad: add white edges. stretch: stretch the image. The log says when it was "
                    "done.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The positive conditioning with the image."),
                io.Conditioning.Output("negative", tooltip="The negative conditioning with the image."),
            ],
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
            description="CFG with one scale for the text and one for the image (DreamVideo, Eq. 5). It makes up to "
            "three predictions per step, in one batch when memory allows; predictions without weight are skipped.",
            search_aliases=["DreamVideo", "dual CFG", "image guidance scale", "InstructPix2Pix"],
            inputs=[
                io.Model.Input("model", tooltip="The model, with a motion model applied."),
                io.Conditioning.Input(
                    "positive", tooltip="The positive output of Apply Image Retention: text and image."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The conditioning of an empty prompt, with or without the image."
                ),
                io.Float.Input(
                    "text_scale",
                    default=DEFAULT_SCALE,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the text (s_t), without unit. 1 is no guidance. The paper gives no "
                    "value.",
                ),
                io.Float.Input(
                    "image_scale",
                    default=DEFAULT_SCALE,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the image (s_i), without unit. Far below the text scale, the text "
                    "overrules the image. Contrast grows with it; 15 looks burnt in the paper.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default=TEXT_FIRST,
                    advanced=True,
                    tooltip="text first: Eq. 5, where the image guidance starts from the prediction with text. image "
                    "first: the other way round, which the paper does not print.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="The guider; connect it to SamplerCustomAdvanced or Long Video.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, text_scale: float, image_scale: float, order: str = TEXT_FIRST
    ) -> io.NodeOutput:
        guider = double_condition_guider(model, positive, negative, text=text_scale, image=image_scale, order=order)
        return io.NodeOutput(guider)


NODES = [LoadRetentionBranch, ApplyImageRetention, DoubleConditionGuider]
