"""StillMotion/long video: clips that continue each other, rendered into a file."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from typing import Any

from comfy_api.v0_0_2 import io

from ..model_patches.comfy_host.conditions.prompts import PromptSchedule, parse_prompts
from .common.sockets import CATEGORY, Prompts, ReuseOptions
from .options import render_sockets
from .render import widgets
from .render.base import RenderNode
from .render.long import LongRequest

LONG = f"{CATEGORY}/long video"


class PromptScheduleNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_PromptSchedule",
            display_name="Prompt Schedule",
            category=LONG,
            description="One prompt per clip for Long Video. A prompt is encoded when its clip is rendered.",
            search_aliases=["prompt travel", "prompt per clip", "batch prompt schedule"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip='One prompt per line, for clip 1, 2, 3 and so on. "5: text" starts at clip 5. The last '
                    "prompt lasts until the end.",
                ),
            ],
            outputs=[Prompts.Output("prompts", tooltip="The prompts; connect them to Long Video.")],
        )

    @classmethod
    def execute(cls, clip, text: str) -> io.NodeOutput:
        return io.NodeOutput(PromptSchedule(clip, parse_prompts(text)))


class LongVideoNode(RenderNode):
    request = LongRequest

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_LongVideo",
            display_name="Long Video",
            category=LONG,
            description="Renders a video of any length clip by clip (VidRD), straight into a file. Memory use does not "
            "grow with the length. Queue it again after an interrupt or a crash and it resumes. A finished video can "
            "be extended, and single clips can be rendered again.",
            search_aliases=["VidRD", "long video", "resume", "AnimateDiff", "infinite video"],
            inputs=cls._sockets() + cls._widgets(),
            outputs=[
                io.Video.Output("video", tooltip="The finished video, read from its file when it is needed."),
                io.Image.Output("first_clip", tooltip="The frames of the first clip."),
                io.String.Output("job", tooltip="The path of the job's folder."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def _sockets(cls) -> list[Any]:
        return [
            io.Vae.Input("vae", tooltip="The VAE of the model, which decodes the clips. A Temporal Decoder works too."),
            widgets.latent(),
            io.Model.Input(
                "model",
                optional=True,
                tooltip="The image model with a motion model applied for the same number of frames. Not needed with a "
                "guider.",
            ),
            io.Conditioning.Input(
                "positive",
                optional=True,
                tooltip="The prompt, for all clips. A ControlNet may have one image for each frame of the video.",
            ),
            io.Conditioning.Input(
                "negative", optional=True, tooltip="The negative prompt, for all clips. Not needed with cfg 1."
            ),
            Prompts.Input(
                "prompts",
                optional=True,
                tooltip="The output of Prompt Schedule. Its prompts replace the prompt of positive.",
            ),
            io.Guider.Input(
                "guider",
                optional=True,
                tooltip="A guider, such as Double-Condition Guider. It replaces model, positive, negative and cfg.",
            ),
            ReuseOptions.Input(
                "reuse_options",
                optional=True,
                tooltip="The output of Reuse Options: how much of the previous clip is used again. Without it the "
                "paper's values are used.",
            ),
            *render_sockets(again="the clips to render with other noise"),
        ]

    @classmethod
    def _widgets(cls) -> list[Any]:
        return [
            widgets.seed(),
            io.Int.Input(
                "clips",
                default=LongRequest.clips,
                min=1,
                max=100000,
                tooltip="Number of clips of the video. Raise it after a render has finished to extend the video.",
            ),
            widgets.frames(LongRequest, "Number of frames of one clip, as in Apply Motion Model."),
            io.Float.Input(
                "cfg",
                default=LongRequest.cfg,
                min=0.0,
                max=100.0,
                step=0.1,
                tooltip="CFG scale, without unit. 10 in the paper.",
            ),
            *widgets.sampling(
                LongRequest,
                steps="50 in the paper",
                sampler="The sampler. The paper uses ddim. Samplers that choose their own steps are refused.",
            ),
        ]


NODES = [PromptScheduleNode, LongVideoNode]
