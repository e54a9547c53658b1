"""StillMotion/long video: clips that continue each other, rendered onto the disk."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from typing import Any

from comfy_api.latest import io

from ..model_patches.comfy_host.conditions.prompts import PromptSchedule, parse_prompts
from .options import render_sockets
from .render import widgets
from .render.base import RenderNode
from .render.long import LongRequest
from .sockets import CATEGORY, Prompts, ReuseOptions

LONG = f"{CATEGORY}/long video"


class PromptScheduleNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_PromptSchedule",
            display_name="Prompt Schedule",
            category=LONG,
            description="One prompt per clip for Long Video, kept as text: each is encoded when its clip is rendered.",
            search_aliases=["prompt travel", "prompt per clip", "batch prompt schedule"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip='One prompt per line, for clip 1, 2, 3, ... "5: text" is from clip 5 on. The last prompt '
                    "goes on to the end.",
                ),
            ],
            outputs=[Prompts.Output("prompts", tooltip="For Long Video.")],
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
            description="Renders a video of any length clip by clip (VidRD) straight into a file. Memory use does not "
            "grow with the length. Queue it again after an interrupt or a crash and it resumes; finished videos can be "
            "extended, and single clips rendered again.",
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
            io.Vae.Input("vae", tooltip="Decodes the clips, a frame at a time; a Temporal Decoder streams them."),
            widgets.latent(),
            io.Model.Input(
                "model",
                optional=True,
                tooltip="The image model with a motion model on it, whose frames are those of one clip. Not needed "
                "with a guider.",
            ),
            io.Conditioning.Input(
                "positive",
                optional=True,
                tooltip="For all clips. ControlNet images may be as many as the video has frames.",
            ),
            io.Conditioning.Input("negative", optional=True, tooltip="For all clips. Not needed with cfg 1."),
            Prompts.Input(
                "prompts",
                optional=True,
                tooltip="From Prompt Schedule: a text for each clip, in the place of the text of positive.",
            ),
            io.Guider.Input(
                "guider",
                optional=True,
                tooltip="Replaces model, positive, negative and cfg by its own, such as Double-Condition Guider.",
            ),
            ReuseOptions.Input(
                "reuse_options",
                optional=True,
                tooltip="From Reuse Options: how much of the clip before is used again. Without them as in the paper.",
            ),
            *render_sockets(again="clips to draw with other noise"),
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
                tooltip="Clips of the video. Raise it after a render has finished to extend the video.",
            ),
            widgets.frames(LongRequest, "Frames of one clip, as in Apply Motion Model."),
            io.Float.Input(
                "cfg",
                default=LongRequest.cfg,
                min=0.0,
                max=100.0,
                step=0.1,
                tooltip="Guidance scale, no unit; 10 in the paper.",
            ),
            *widgets.sampling(
                LongRequest,
                steps="50 in the paper.",
                sampler="ddim in the paper. Samplers that choose their own steps are refused.",
            ),
        ]


NODES = [PromptScheduleNode, LongVideoNode]
