"""StillMotion/image to video: videos in stages, rendered onto the disk."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from typing import Any

from comfy_api.latest import io

from ..model_patches.comfy_host.video.shared import SAMPLERS
from ..model_patches.dreamvideo.guidance import DEFAULT_SCALE, ORDERS, TEXT_FIRST
from ..model_patches.dreamvideo.image import FITS
from ..model_patches.dreamvideo.stages import REANCHOR, UNDER_NOISE
from . import widgets
from .dreamvideo import GROUP
from .render.base import KEEP, RenderNode
from .render.staged import StagedRequest
from .sockets import RetentionBranch


class StagedVideoNode(RenderNode):
    request = StagedRequest

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_StagedVideo",
            display_name="Staged Video",
            category=GROUP,
            description="A video in stages (DreamVideo), each with a prompt of its own: the last frame of one is the "
            "image of the next. Straight into a file; a stopped or killed render goes on where it was, and one more "
            "prompt makes a finished one longer.",
            search_aliases=["DreamVideo", "image to video", "two stages", "prompt travel", "continue video", "resume"],
            inputs=cls._sockets() + cls._widgets() + cls._more_widgets() + cls._file(),
            outputs=[
                io.Video.Output("video", tooltip="The file, read when it is needed."),
                io.Image.Output("last_frame", tooltip="The last frame."),
                io.String.Output("job", tooltip="The folder of the job."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def _sockets(cls) -> list[Any]:
        return [
            io.Model.Input(
                "model", tooltip="The image model with a motion model on it, whose frames are those of one stage."
            ),
            io.Clip.Input("clip", tooltip="The text encoder of the model; it encodes the prompt of each stage."),
            io.Vae.Input("vae", tooltip="Decodes every frame, once."),
            RetentionBranch.Input("retention_branch", tooltip="From Load Retention Branch."),
            io.Conditioning.Input(
                "negative",
                optional=True,
                tooltip="The null text. Without it, an empty prompt, as in the training.",
            ),
            io.Image.Input(
                "image",
                optional=True,
                tooltip="One image, with which the first stage begins. Without it the first stage is made from its "
                "text alone.",
            ),
            io.Latent.Input("latent", optional=True, tooltip="Its size counts, in the place of width and height."),
        ]

    @classmethod
    def _widgets(cls) -> list[Any]:
        scale: dict[str, Any] = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
        return [
            io.String.Input(
                "prompts",
                multiline=True,
                default="",
                tooltip='One line for each stage. A line that is only "" (two quotes) leaves its stage to the image. '
                "More lines than a finished job has extend it.",
            ),
            widgets.seed(),
            io.Int.Input(
                "frames",
                default=8,
                min=1,
                max=4096,
                tooltip="Frames of one stage, as in Apply Motion Model; 8 in the paper.",
            ),
            io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Steps of the sampler; the paper gives none."),
            io.Float.Input(
                "text_scale",
                default=DEFAULT_SCALE,
                tooltip="s_t, no unit: how far to go from no text to the text. 1 is no guidance. The paper gives no "
                "value.",
                **scale,
            ),
            io.Float.Input(
                "image_scale",
                default=DEFAULT_SCALE,
                tooltip="s_i, no unit: how far to go from a white image to the image. Far below the text scale, the "
                "text overrules the image; contrast grows with it, and from stage to stage.",
                **scale,
            ),
        ]

    @classmethod
    def _more_widgets(cls) -> list[Any]:
        return [
            io.String.Input(
                "name",
                default="video",
                advanced=True,
                tooltip="Of the job: its folder in output/staged_video begins with it.",
            ),
            io.Int.Input(
                "width", default=256, min=16, max=16384, step=8, advanced=True, tooltip="Pixels, without a latent."
            ),
            io.Int.Input(
                "height", default=256, min=16, max=16384, step=8, advanced=True, tooltip="Pixels, without a latent."
            ),
            io.Boolean.Input(
                "drop_doubled",
                default=False,
                advanced=True,
                tooltip="Leave out the first frame of each stage but the first: it repeats the last one of the stage "
                "before. The paper keeps it.",
            ),
            io.Combo.Input(
                "reanchor",
                options=list(REANCHOR),
                default=REANCHOR[0],
                advanced=True,
                tooltip="Against drift: give pictures the mean and deviation of red, green and blue that the first "
                "image has. next image: only what the next stage begins with. every frame: all that is seen, too.",
            ),
            io.Combo.Input(
                "order",
                options=list(ORDERS),
                default=TEXT_FIRST,
                advanced=True,
                tooltip="Of the guidance, as in Double-Condition Guider: text first is Eq. 5.",
            ),
            io.Float.Input(
                "strength",
                default=1.0,
                min=0.0,
                max=10.0,
                step=0.01,
                advanced=True,
                tooltip="Factor on what the branch adds to the model, no unit. 1 is as trained, 0 is off.",
            ),
            io.Combo.Input(
                "sampler_name",
                options=list(SAMPLERS),
                default="ddim",
                advanced=True,
                tooltip="Any. The paper names none; ddim is that of the model it builds on.",
            ),
            widgets.scheduler(),
        ]

    @classmethod
    def _file(cls) -> list[Any]:
        return [
            widgets.fps(),
            widgets.file_format(),
            io.Combo.Input(
                "fit",
                options=list(FITS),
                default=FITS[0],
                advanced=True,
                tooltip="What happens to an image of another aspect than the video. crop: its middle is kept. pad: "
                "white edges are added. stretch: it is stretched. The log tells when it was done.",
            ),
            io.String.Input(
                "re_render",
                default="",
                advanced=True,
                tooltip="Stages to make again with other noise, counted from 1, and all behind them: "
                '"2" or "2, 4". "2:2" is a second other take, "2:0" the first one again.',
            ),
            io.Combo.Input(
                "keep",
                options=list(KEEP),
                default=KEEP[0],
                advanced=True,
                tooltip="When the video is finished. everything: any stage can be made again at once. what extends "
                "it: smaller; making a stage again also makes all before it.",
            ),
            widgets.enlarge(),
            io.Combo.Input(
                "image_under_noise",
                options=list(UNDER_NOISE),
                default=UNDER_NOISE[0],
                optional=True,
                advanced=True,
                tooltip="Stages that begin with their image in every frame, under all of the noise, and not with noise "
                "alone: their colours are kept better, and they may move less. without text: stages that are left to "
                "the image. The paper tells nothing of it.",
            ),
        ]


NODES = [StagedVideoNode]
