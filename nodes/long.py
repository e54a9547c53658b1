"""StillMotion/long video: clips that continue each other, rendered onto the disk."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from typing import Any

from comfy_api.latest import io

from ..model_patches.comfy_host.conditions.prompts import PromptSchedule, parse_prompts
from ..model_patches.comfy_host.video.shared import SAMPLERS
from ..model_patches.vidrd.reuse import RULES
from . import widgets
from .render.base import KEEP, RenderNode
from .render.long import LongRequest
from .sockets import CATEGORY, Prompts

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
            description="Renders a video of any length clip by clip (VidRD) straight into a file. Memory stays flat, a "
            "stopped or killed render goes on where it was, finished ones can be extended, and single clips rendered "
            "again.",
            search_aliases=["VidRD", "long video", "resume", "AnimateDiff", "infinite video"],
            inputs=cls._sockets() + cls._widgets() + cls._more_widgets(),
            outputs=[
                io.Video.Output("video", tooltip="The file, read when it is needed."),
                io.Image.Output("first_clip", tooltip="The frames of the first clip."),
                io.String.Output("job", tooltip="The folder of the job."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def _sockets(cls) -> list[Any]:
        return [
            io.Model.Input(
                "model", tooltip="The image model with a motion model on it, whose frames are those of one clip."
            ),
            io.Vae.Input("vae", tooltip="Decodes the clips, a frame at a time; a Temporal Decoder streams them."),
            io.Conditioning.Input(
                "positive",
                optional=True,
                tooltip="For all clips. ControlNet images may be as many as the video has frames.",
            ),
            io.Conditioning.Input("negative", optional=True, tooltip="For all clips. Not needed with cfg 1."),
            Prompts.Input(
                "prompts",
                optional=True,
                tooltip="From Prompt Schedule: the text of each clip, in the place of that of positive.",
            ),
            io.Latent.Input("latent", optional=True, tooltip="Its size counts, in the place of width and height."),
            io.Guider.Input(
                "guider",
                optional=True,
                tooltip="Guides in its own way; then model, positive, negative and cfg are those it was made with.",
            ),
        ]

    @classmethod
    def _widgets(cls) -> list[Any]:
        return [
            io.String.Input(
                "name", default="video", tooltip="Of the job: its folder in output/long_video begins with it."
            ),
            widgets.seed(),
            io.Int.Input(
                "clips",
                default=4,
                min=1,
                max=100000,
                tooltip="Clips of the video. More than a finished job has extend it.",
            ),
            io.Int.Input(
                "frames", default=16, min=1, max=4096, tooltip="Frames of one clip, as in Apply Motion Model."
            ),
            io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Steps of the sampler; the paper takes 50."),
            io.Float.Input(
                "cfg", default=10.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale, no unit; 10 in the paper."
            ),
        ]

    @classmethod
    def _more_widgets(cls) -> list[Any]:
        return [
            io.Combo.Input(
                "sampler_name",
                options=list(SAMPLERS),
                default="ddim",
                advanced=True,
                tooltip="ddim in the paper. Samplers that choose their own steps are refused.",
            ),
            widgets.scheduler(),
            widgets.fps(),
            io.Int.Input(
                "width", default=512, min=16, max=16384, step=8, advanced=True, tooltip="Pixels, without a latent."
            ),
            io.Int.Input(
                "height", default=512, min=16, max=16384, step=8, advanced=True, tooltip="Pixels, without a latent."
            ),
            widgets.file_format(),
            io.Float.Input(
                "seconds",
                default=0.0,
                min=0.0,
                max=1e6,
                step=0.5,
                advanced=True,
                tooltip="Length in seconds, rounded up to whole clips, in the place of clips. 0: clips counts.",
            ),
            io.Int.Input(
                "overlap",
                default=4,
                min=0,
                max=4096,
                advanced=True,
                tooltip="M: frames at the beginning of a "
                "clip that continue the one before; at most half of a clip keeps new frames coming.",
            ),
            io.Float.Input(
                "recycle",
                default=4.0,
                min=0.0,
                max=1000.0,
                step=0.1,
                advanced=True,
                tooltip="alpha: how much of a clip's other noise is old, no unit. 0 is all new, 4 is 97 %.",
            ),
            io.Float.Input(
                "guidance",
                default=0.4,
                min=0.0,
                max=1.0,
                step=0.01,
                advanced=True,
                tooltip="beta: fraction "
                "of the steps in which the first frame is put where the clip before had it. 1 repeats it in reverse.",
            ),
            io.Combo.Input(
                "rule",
                options=list(RULES),
                default=RULES[0],
                advanced=True,
                tooltip="code: as the authors' code counts the guided steps. paper: as Eq. 8 is printed, one more.",
            ),
            io.Boolean.Input(
                "reuse_step_noise",
                default=False,
                advanced=True,
                tooltip="Ancestral and SDE samplers: reuse the noise that they add at each step, too.",
            ),
            io.String.Input(
                "re_render",
                default="",
                advanced=True,
                tooltip="Clips to render again with other noise, "
                'counted from 1: "7" or "3, 7". "7:2" is a second other take, "7:0" the first one again.',
            ),
            io.Combo.Input(
                "keep",
                options=list(KEEP),
                default=KEEP[0],
                advanced=True,
                tooltip="When the video is "
                "finished. everything: each clip can be rendered again at once. what extends it: smaller; rendering a "
                "clip again also samples all before it.",
            ),
            widgets.enlarge(),
        ]


NODES = [PromptScheduleNode, LongVideoNode]
