"""StillMotion/image to video: videos in stages (DreamVideo), rendered into a file."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from typing import Any

from comfy_api.v0_0_2 import io

from ..model_patches.comfy_host.video.staged import FITS, REANCHOR, UNDER_NOISE, parse_stages
from ..model_patches.dreamvideo.guidance import ORDERS
from .common import sockets
from .common.sockets import CATEGORY, RetentionBranch
from .dreamvideo import GROUP
from .options import render_sockets
from .render import widgets
from .render.base import RenderNode
from .render.options import StageOptions
from .render.staged import StagedRequest, StagePrompts


class StagePromptsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_StagePrompts",
            display_name="Stage Prompts",
            category=GROUP,
            description="The prompts of Staged Video, one per stage. A prompt is encoded when its stage is rendered.",
            search_aliases=["DreamVideo", "multi prompt", "prompt travel", "two stages"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip='One prompt per line, one line per stage. A line with only "" (two quotes) is a stage '
                    "without a prompt, which follows its image alone. Add a line after a render has finished to extend "
                    "the video.",
                ),
            ],
            outputs=[sockets.StagePrompts.Output("prompts", tooltip="The prompts; connect them to Staged Video.")],
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
            description="Settings of Staged Video (DreamVideo): how the stages follow each other, and how the image is "
            "used. Without this node the paper's values are used.",
            search_aliases=["DreamVideo", "colour drift", "double frame", "image strength", "image under noise"],
            inputs=[
                io.Boolean.Input(
                    "drop_doubled",
                    default=StageOptions.drop_doubled,
                    tooltip="Leave out the first frame of every stage after the first one, because it repeats the last "
                    "frame of the previous stage. The paper keeps it.",
                ),
                io.Combo.Input(
                    "reanchor",
                    options=list(REANCHOR),
                    default=StageOptions.reanchor,
                    tooltip="Prevents colour drift: images get the mean and standard deviation of red, green and blue "
                    "of the first image. next image: only the image with which the next stage begins. every frame: all "
                    "frames of the video.",
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
                    tooltip="Strength of the branch, a factor without unit. 1 is as trained, 0 is off.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=StageOptions.fit,
                    tooltip="What to do when the image and the video have different aspect ratios. crop: keep the "
                    "middle of the image. pad: add white edges. stretch: stretch the image. The log says when it was "
                    "done.",
                ),
                io.Combo.Input(
                    "image_under_noise",
                    options=list(UNDER_NOISE),
                    default=StageOptions.image_under_noise,
                    tooltip="Which stages start from their image with full noise added, instead of from noise alone: "
                    "the colours are kept better, and there may be less motion. without text: stages without a prompt. "
                    "The paper does not mention it.",
                ),
            ],
            outputs=[sockets.StageOptions.Output("stage_options", tooltip="Connect them to Staged Video.")],
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
            description="Renders a video in stages (DreamVideo), straight into a file. Each stage has its own prompt, "
            "and the last frame of one stage is the image of the next. Queue it again after an interrupt or a crash "
            "and it resumes; add a prompt to extend a finished video.",
            search_aliases=["DreamVideo", "image to video", "two stages", "prompt travel", "continue video", "resume"],
            inputs=cls._sockets() + cls._widgets(),
            outputs=[
                io.Video.Output("video", tooltip="The finished video, read from its file when it is needed."),
                io.Image.Output("last_frame", tooltip="The last frame of the video."),
                io.String.Output("job", tooltip="The path of the job's folder."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def _sockets(cls) -> list[Any]:
        return [
            io.Model.Input(
                "model", tooltip="The image model with a motion model applied for the number of frames of one stage."
            ),
            io.Vae.Input("vae", tooltip="The VAE of the model, which decodes every frame."),
            RetentionBranch.Input("retention_branch", tooltip="The output of Load Retention Branch."),
            sockets.StagePrompts.Input("prompts", tooltip="The output of Stage Prompts: one prompt per stage."),
            widgets.latent(),
            io.Conditioning.Input(
                "negative",
                optional=True,
                tooltip="The conditioning of an empty prompt. Without it, an empty prompt is encoded, as in training.",
            ),
            io.Image.Input(
                "image",
                optional=True,
                tooltip="The image with which the first stage begins. Without it, the first stage follows its prompt "
                "alone.",
            ),
            sockets.StageOptions.Input(
                "stage_options",
                optional=True,
                tooltip="The output of Stage Options: how the stages follow each other, and how the image is used. "
                "Without it the paper's values are used.",
            ),
            *render_sockets(again="the stages to render with other noise, together with all later stages"),
        ]

    @classmethod
    def _widgets(cls) -> list[Any]:
        scale: dict[str, Any] = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
        return [
            widgets.seed(),
            widgets.frames(StagedRequest, "Number of frames of one stage, as in Apply Motion Model. 8 in the paper."),
            io.Float.Input(
                "text_scale",
                default=StagedRequest.text_scale,
                tooltip="Guidance scale of the prompt (s_t), without unit. 1 is no guidance. The paper gives no value.",
                **scale,
            ),
            io.Float.Input(
                "image_scale",
                default=StagedRequest.image_scale,
                tooltip="Guidance scale of the image (s_i), without unit. Far below the text scale, the text overrules "
                "the image. Contrast grows with it, and from stage to stage.",
                **scale,
            ),
            *widgets.sampling(
                StagedRequest,
                steps="the paper gives no number",
                sampler="Any sampler. The paper names none; ddim is the sampler of the model that it builds on.",
            ),
        ]


NODES = [StagePromptsNode, StageOptionsNode, StagedVideoNode]
