"""StillMotion/options: settings of the render nodes that most graphs leave as they are, in nodes of their own."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from typing import Any

from comfy_api.latest import io

from ..rendering.formats import FORMATS
from ..rendering.loop import parse_takes
from . import sockets
from .render import widgets
from .render.options import KEEP, OutputOptions, ReuseOptions
from .sockets import CATEGORY

OPTIONS = f"{CATEGORY}/options"


def render_sockets(*, again: str = "") -> list[Any]:
    """The optional sockets that every render node has at its end. again: what is rendered again, "" for nothing."""
    takes = (
        [sockets.RenderAgain.Input("render_again", optional=True, tooltip=f"From Render Again: {again}.")]
        if again
        else []
    )
    return [
        io.Sampler.Input(
            "sampler", optional=True, tooltip="Such as KSamplerSelect. It replaces sampler_name, with its options."
        ),
        io.Sigmas.Input(
            "sigmas", optional=True, tooltip="Such as BasicScheduler: noise levels. They replace scheduler and steps."
        ),
        *takes,
        sockets.OutputOptions.Input(
            "output_options",
            optional=True,
            tooltip="From Video Output Options: name, frames per second, length in seconds, format. Without them the "
            "video is an MP4 of 8 frames per second called video.",
        ),
    ]


class VideoOutputOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_VideoOutputOptions",
            display_name="Video Output Options",
            category=OPTIONS,
            description="The file that Long Video, Autoregressive Video or Staged Video writes: name of the job, "
            "frames per second, length in seconds, format, enlargement, and what of the job is kept.",
            search_aliases=["fps", "frame rate", "format", "filename", "codec", "duration", "save video"],
            inputs=[
                io.String.Input(
                    "name",
                    default=OutputOptions.name,
                    tooltip="Job name; prefix of the job's folder in ComfyUI's output folder.",
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
                    tooltip="Length in seconds. It replaces the clips of Long Video, rounded up to whole clips, and "
                    "the frames of Autoregressive Video. 0: those count.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=OutputOptions.format,
                    tooltip="h264-mp4 plays everywhere. ffv1-mkv loses nothing, and no browser plays it. png and webp: "
                    "ffv1-mkv, and a folder of pictures.",
                ),
                io.Int.Input(
                    "enlarge",
                    default=OutputOptions.enlarge,
                    min=1,
                    max=16,
                    tooltip="Each pixel becomes so many across and down in the file, for models of small pictures.",
                ),
                io.Combo.Input(
                    "keep",
                    options=list(KEEP),
                    default=OutputOptions.keep,
                    tooltip="What of a finished job stays on the disk. everything: any clip can be rendered again at "
                    "once. what extends it: smaller; rendering a clip again also renders all before it.",
                ),
            ],
            outputs=[
                sockets.OutputOptions.Output(
                    "output_options", tooltip="For Long Video, Autoregressive Video or Staged Video."
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
            description="How much of a clip Long Video takes over into the next one (VidRD): frames, noise and "
            "latents. Without this node the values are the paper's.",
            search_aliases=["VidRD", "overlap", "frame noise reuse", "staged guidance", "alpha", "beta"],
            inputs=widgets.reuse(),
            outputs=[sockets.ReuseOptions.Output("reuse_options", tooltip="For Long Video.")],
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
            description="Names clips of a finished or half-finished video that are rendered again with other noise. "
            "Long Video leaves the other clips as they are; Staged Video also renders the stages that follow.",
            search_aliases=["take", "retake", "redo clip", "variation", "re-render"],
            inputs=[
                io.String.Input(
                    "clips",
                    default="",
                    tooltip='Clips or stages, counted from 1: "7" or "3, 7". "7:2" is a second other take, "7:0" the '
                    "first one again. Empty: every clip stays as it is.",
                ),
            ],
            outputs=[sockets.RenderAgain.Output("render_again", tooltip="For Long Video or Staged Video.")],
        )

    @classmethod
    def execute(cls, clips: str) -> io.NodeOutput:
        return io.NodeOutput(parse_takes(clips))


NODES = [VideoOutputOptions, ReuseOptionsNode, RenderAgain]
