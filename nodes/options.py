"""StillMotion/options: nodes with those settings of the render nodes that most graphs leave at their defaults."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from typing import Any

from comfy_api.v0_0_2 import io

from ..rendering.formats import FORMATS
from ..rendering.loop import parse_takes
from .common import sockets
from .common.sockets import CATEGORY
from .render import widgets
from .render.options import KEEP, OutputOptions, ReuseOptions

OPTIONS = f"{CATEGORY}/options"


def render_sockets(*, again: str = "") -> list[Any]:
    """The optional sockets at the end of every render node. again: describes Render Again; "" leaves it out."""
    takes = (
        [sockets.RenderAgain.Input("render_again", optional=True, tooltip=f"The output of Render Again: {again}.")]
        if again
        else []
    )
    return [
        io.Sampler.Input(
            "sampler", optional=True, tooltip="A sampler, for example from KSamplerSelect. It replaces sampler_name."
        ),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Noise levels, for example from BasicScheduler. They replace scheduler and steps.",
        ),
        *takes,
        sockets.OutputOptions.Input(
            "output_options",
            optional=True,
            tooltip="The output of Video Output Options: name, frames per second, length in seconds, format. Without "
            "it the video is an MP4 named video with 8 frames per second.",
        ),
    ]


class VideoOutputOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_VideoOutputOptions",
            display_name="Video Output Options",
            category=OPTIONS,
            description="Settings of the file that Long Video, Autoregressive Video or Staged Video writes: name, "
            "frames per second, length in seconds, format, enlargement, and which files of the job are kept.",
            search_aliases=["fps", "frame rate", "format", "filename", "codec", "duration", "save video"],
            inputs=[
                io.String.Input(
                    "name",
                    default=OutputOptions.name,
                    tooltip="Name of the job. The job's folder in ComfyUI's output folder begins with it.",
                ),
                io.Float.Input(
                    "fps",
                    default=OutputOptions.fps,
                    min=0.1,
                    max=240.0,
                    step=0.1,
                    tooltip="Frames per second of the video.",
                ),
                io.Float.Input(
                    "seconds",
                    default=OutputOptions.seconds,
                    min=0.0,
                    max=1e6,
                    step=0.5,
                    tooltip="Length of the video in seconds. It replaces clips of Long Video (rounded up to whole "
                    "clips) and frames of Autoregressive Video. 0: clips or frames are used.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=OutputOptions.format,
                    tooltip="h264-mp4 plays everywhere. ffv1-mkv is lossless, but browsers do not play it. png and "
                    "webp: a folder of images in addition to ffv1-mkv.",
                ),
                io.Int.Input(
                    "enlarge",
                    default=OutputOptions.enlarge,
                    min=1,
                    max=16,
                    tooltip="Enlarges the video by this factor by repeating pixels, for models that make small images.",
                ),
                io.Combo.Input(
                    "keep",
                    options=list(KEEP),
                    default=OutputOptions.keep,
                    tooltip="Which files of a finished job stay on the disk. everything: any clip can be rendered "
                    "again at once. what extends it: smaller, but to render a clip again, all clips before it are "
                    "rendered, too.",
                ),
            ],
            outputs=[
                sockets.OutputOptions.Output(
                    "output_options", tooltip="Connect them to Long Video, Autoregressive Video or Staged Video."
                )
            ],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(OutputOptions(**options))


class ReuseOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ReuseOptions",
            display_name="Reuse Options",
            category=OPTIONS,
            description="Settings of Long Video (VidRD): how much of a clip is used again in the next one, as frames, "
            "noise and latents. Without this node the paper's values are used.",
            search_aliases=["VidRD", "overlap", "frame noise reuse", "staged guidance", "alpha", "beta"],
            inputs=widgets.reuse(),
            outputs=[sockets.ReuseOptions.Output("reuse_options", tooltip="Connect them to Long Video.")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(ReuseOptions(**options))


class RenderAgain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_RenderAgain",
            display_name="Render Again",
            category=OPTIONS,
            description="Selects clips of a finished or unfinished video to be rendered again with other noise. Long "
            "Video leaves the other clips unchanged. Staged Video also renders the stages that follow.",
            search_aliases=["take", "retake", "redo clip", "variation", "re-render"],
            inputs=[
                io.String.Input(
                    "clips",
                    default="",
                    tooltip='Numbers of clips or stages, counted from 1: "7" or "3, 7". "7:2" renders the second other '
                    'take of clip 7, "7:0" the original again. Empty: no clip is rendered again.',
                ),
            ],
            outputs=[sockets.RenderAgain.Output("render_again", tooltip="Connect it to Long Video or Staged Video.")],
        )

    @classmethod
    def execute(cls, clips: str) -> io.NodeOutput:
        return io.NodeOutput(parse_takes(clips))


NODES = [VideoOutputOptions, ReuseOptionsNode, RenderAgain]
