"""StillMotion/image to video: videos in stages, rendered onto the disk."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from typing import Any

from comfy_api.latest import io

from ..model_patches.comfy_host.video.staged import FITS, REANCHOR, UNDER_NOISE, parse_stages
from ..model_patches.dreamvideo.guidance import ORDERS
from . import sockets
from .dreamvideo import GROUP
from .options import render_sockets
from .render import widgets
from .render.base import RenderNode
from .render.options import StageOptions
from .render.staged import StagedRequest, StagePrompts
from .sockets import CATEGORY, RetentionBranch


class StagePromptsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_StagePrompts",
            display_name="Stage Prompts",
            category=GROUP,
            description="The prompts of Staged Video, one for each stage. Each is encoded when its stage is rendered.",
            search_aliases=["DreamVideo", "multi prompt", "prompt travel", "two stages"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip='One line for each stage. A line that is only "" (two quotes) leaves its stage to the '
                    "image. Add a line after a render has finished to extend the video.",
                ),
            ],
            outputs=[sockets.StagePrompts.Output("prompts", tooltip="For Staged Video.")],
        )

    @classmethod
    def execute(cls, clip, text: str) -> io.NodeOutput:
        return io.NodeOutput(StagePrompts(clip, parse_stages(text)))


class StageOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_StageOptions",
            display_name="Stage Options",
            category=f"{CATEGORY}/options",
            description="How the stages of Staged Video follow each other, and how the image is used (DreamVideo). "
            "Without this node as in the paper.",
            search_aliases=["DreamVideo", "colour drift", "double frame", "image strength", "image under noise"],
            inputs=[
                io.Boolean.Input(
                    "drop_doubled",
                    default=StageOptions.drop_doubled,
                    tooltip="Leave out the first frame of each stage but the first: it repeats the last one of the "
                    "stage before. The paper keeps it.",
                ),
                io.Combo.Input(
                    "reanchor",
                    options=list(REANCHOR),
                    default=StageOptions.reanchor,
                    tooltip="Against drift: give pictures the mean and deviation of red, green and blue that the first "
                    "image has. next image: only what the next stage begins with. every frame: every one of the video.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default=StageOptions.order,
                    tooltip="Order of the guidance, as in Double-Condition Guider: text first is Eq. 5.",
                ),
                io.Float.Input(
                    "strength",
                    default=StageOptions.strength,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Factor on what the branch adds to the model, no unit. 1 is as trained, 0 is off.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=StageOptions.fit,
                    tooltip="What happens to an image of another aspect than the video. crop: its middle is kept. pad: "
                    "white edges are added. stretch: it is stretched. The log tells when it was done.",
                ),
                io.Combo.Input(
                    "image_under_noise",
                    options=list(UNDER_NOISE),
                    default=StageOptions.image_under_noise,
                    tooltip="Stages that begin with their image in every frame, under all of the noise, instead of "
                    "noise alone: their colours are kept better, and they may move less. without text: stages that "
                    "are left to the image. The paper does not mention it.",
                ),
            ],
            outputs=[sockets.StageOptions.Output("stage_options", tooltip="For Staged Video.")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(StageOptions(**options))


class StagedVideoNode(RenderNode):
    request = StagedRequest

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_StagedVideo",
            display_name="Staged Video",
            category=GROUP,
            description="A video in stages (DreamVideo), each with a prompt of its own: the last frame of one is the "
            "image of the next. It is written straight into a file. Queue it again after an interrupt or a crash and "
            "it resumes; add a prompt to extend a finished one.",
            search_aliases=["DreamVideo", "image to video", "two stages", "prompt travel", "continue video", "resume"],
            inputs=cls._sockets() + cls._widgets(),
            outputs=[
                io.Video.Output("video", tooltip="The finished video, read from its file when it is needed."),
                io.Image.Output("last_frame", tooltip="The last frame."),
                io.String.Output("job", tooltip="The path of the job's folder."),
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
            io.Vae.Input("vae", tooltip="Decodes every frame, once."),
            RetentionBranch.Input("retention_branch", tooltip="From Load Retention Branch."),
            sockets.StagePrompts.Input("prompts", tooltip="From Stage Prompts: one prompt for each stage."),
            widgets.latent(),
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
            sockets.StageOptions.Input(
                "stage_options",
                optional=True,
                tooltip="From Stage Options: how stages follow each other, and how the image is used. Without them as "
                "in the paper.",
            ),
            *render_sockets(again="stages to make with other noise, and all behind them"),
        ]

    @classmethod
    def _widgets(cls) -> list[Any]:
        scale: dict[str, Any] = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
        return [
            widgets.seed(),
            widgets.frames(StagedRequest, "Frames of one stage, as in Apply Motion Model; 8 in the paper."),
            io.Float.Input(
                "text_scale",
                default=StagedRequest.text_scale,
                tooltip="s_t, no unit: how far to go from no text to the text. 1 is no guidance. The paper gives no "
                "value.",
                **scale,
            ),
            io.Float.Input(
                "image_scale",
                default=StagedRequest.image_scale,
                tooltip="s_i, no unit: how far to go from a white image to the image. Far below the text scale, the "
                "text overrules the image; contrast grows with it, and from stage to stage.",
                **scale,
            ),
            *widgets.sampling(
                StagedRequest,
                steps="the paper gives none.",
                sampler="Any sampler. The paper names none; ddim is that of the model it builds on.",
            ),
        ]


NODES = [StagePromptsNode, StageOptionsNode, StagedVideoNode]
