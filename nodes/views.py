"""StillMotion/views: diagrams of what a method did, shown on the node and returned as an image."""

# V3 nodes take their inputs by name, so every `execute` has its own signature.
# pyright: reportIncompatibleMethodOverride=false

from comfy_api.v0_0_2 import io, ui

from ..evaluation.drawing.probes import mapping_shift
from ..evaluation.drawing.views import (
    LINES,
    as_batch,
    continuity_text,
    draw_continuity,
    draw_guidance,
    draw_mapping_shift,
    draw_normality,
    draw_token_attention,
    draw_xt_slice,
    flicker_text,
    from_batch,
    normality_text,
)
from ..evaluation.metrics import continuity
from ..evaluation.scores.statistics import normality
from ..model_patches.comfy_host.views import mapped_noise, mapping_probe, noise_clips, token_attention, with_progress
from .common.sockets import CATEGORY, GuidanceReadout
from .render import widgets
from .render.reading import frames_of

VIEWS = f"{CATEGORY}/views"


class View(io.ComfyNode):
    """A node that shows a diagram on itself."""

    @classmethod
    def output(cls, picture, *texts: str) -> io.NodeOutput:
        image = as_batch(picture)
        return io.NodeOutput(image, *texts, ui=ui.PreviewImage(image, cls=cls))


class XTSlice(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_XTSlice",
            display_name="X-T Slice",
            category=VIEWS,
            description="Draws one line of pixels of a video over time. Even motion gives a slanted line, no motion a "
            "straight one, flicker a broken one.",
            search_aliases=["flicker", "temporal consistency", "space-time slice", "HARIVO"],
            inputs=[
                io.Image.Input("images", tooltip="The frames of one video, in order of time."),
                io.Combo.Input(
                    "line",
                    options=list(LINES),
                    default=LINES[0],
                    tooltip="row: a horizontal line of pixels, for motion to the left and right. column: a vertical "
                    "line, for motion up and down.",
                ),
                io.Float.Input(
                    "position",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Position of the line, as a fraction of the height (row) or of the width (column): 0 is "
                    "the top or left edge, 1 the bottom or right edge.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The middle frame with the line marked, and the slice beside it."),
                io.String.Output(
                    "measures",
                    tooltip="Mean first and second difference over time, as text. Pixel values are in 0 to 1.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, line: str, position: float) -> io.NodeOutput:
        frames = from_batch(images)
        return cls.output(draw_xt_slice(frames, line=line, position=position), flicker_text(frames))


class VideoContinuity(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_VideoContinuity",
            display_name="Video Continuity",
            category=VIEWS,
            description="Measures how well a long video holds together: seams between its clips, flicker, drift of "
            "the colours, and clips that replay the previous clip backwards. It reads the file frame by frame.",
            search_aliases=["seam", "drift", "flicker", "content cycling", "long video", "VidRD"],
            inputs=[
                io.Video.Input("video", tooltip="The video to measure, of any length."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=2,
                    max=4096,
                    tooltip="Number of frames of one clip, as in sampling. Seams are measured at multiples of it.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="Curves of seams, mirrored repeats, flicker and drift over time."),
                io.String.Output(
                    "measures", tooltip="The same as text, one line per clip. Pixel values are in 0 to 1."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, video, frames: int) -> io.NodeOutput:
        measures = continuity.read(with_progress(frames_of(video), video.get_frame_count()), frames)
        return cls.output(draw_continuity(measures), continuity_text(measures))


class MitigatingGradientPlot(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_MitigatingGradientPlot",
            display_name="Mitigating Gradient Plot",
            category=VIEWS,
            description="Draws how strong the mitigating gradient was at every model call of a sampling run. Guidance "
            "Readout shows the same as numbers.",
            search_aliases=["HARIVO", "guidance strength", "diagram", "debug"],
            inputs=[
                io.Latent.Input("latent", tooltip="The output of the sampler. It selects the run that is shown."),
                GuidanceReadout.Input("readout", tooltip="The readout output of Mitigating Gradient."),
            ],
            outputs=[
                io.Image.Output(
                    tooltip="Curves of the change of the predicted noise, of the difference between frames and of "
                    "alpha."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, readout) -> io.NodeOutput:
        record, remark = readout.find(latent["samples"])
        if record is None:
            raise ValueError(f"mitigating gradient plot: {remark}")
        return cls.output(draw_guidance(record.calls, remark + record.settings))


class NoiseNormality(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_NoiseNormality",
            display_name="Noise Normality",
            category=VIEWS,
            description="Tests whether the noise of whole videos looks independent and normally distributed "
            "(Jarque-Bera test, as in HARIVO).",
            search_aliases=["Jarque-Bera", "noise statistics", "HARIVO", "gaussian"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="With noise connected, only its shape is used; otherwise the latent itself is tested. Use "
                    "a batch of at least 64 videos.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Number of frames of one video: a divisor of the batch size. Each video is one sample of "
                    "the test. Latents with a frame axis do not use it.",
                ),
                io.Noise.Input("noise", optional=True, tooltip="The noise to test, for example from RandomNoise."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A model with a HARIVO mapping network: the noise is also tested after the mapping "
                    "network.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The table of the test as an image."),
                io.String.Output("table", tooltip="The same table as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, frames: int, noise=None, model=None) -> io.NodeOutput:
        name = "latent" if noise is None else "noise"
        clips = noise_clips(latent, noise, frames)
        tests = {name: normality(clips)}
        if model is not None:
            tests["after the mapping"] = normality(mapped_noise(model, clips))
        return cls.output(draw_normality(tests), normality_text(tests))


class MappingShift(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_MappingShift",
            display_name="Mapping Shift",
            category=VIEWS,
            description="Draws what HARIVO's mapping network does to the mean and the standard deviation of the noisy "
            "latent at every noise level, and the size of the change. The image model is not run.",
            search_aliases=["HARIVO", "mapping network", "figure A1", "diagram"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a HARIVO file applied and mapping_strength above 0."),
                io.Latent.Input(
                    "latent",
                    tooltip="Latents of a video without noise: the output of a sampler, or encoded frames. The node "
                    "adds noise of every level to them.",
                ),
                widgets.seed("Seed of the added noise.", advanced=True),
            ],
            outputs=[
                io.Image.Output(tooltip="Curves of mean, standard deviation and size of the change over the timestep.")
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, latent, seed: int = 0) -> io.NodeOutput:
        return cls.output(draw_mapping_shift(mapping_shift(**mapping_probe(model, latent), seed=seed)))


class FrameTokenAttention(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_FrameTokenAttention",
            display_name="Frame Token Attention",
            category=VIEWS,
            description="Shows where in each frame the model attends to HARIVO's frame-wise tokens. It runs the model "
            "once, on the latent with noise added.",
            search_aliases=["HARIVO", "attention map", "frame-wise tokens"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a HARIVO file applied and token_strength above 0."),
                io.Conditioning.Input("positive", tooltip="The conditioning of the prompt of the video."),
                io.Latent.Input("latent", tooltip="The latents of the video, for example the output of the sampler."),
                io.Float.Input(
                    "percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Position in the sampling, as a fraction: 0 is pure noise, 1 is the finished video.",
                ),
                widgets.seed("Seed of the added noise.", advanced=True),
            ],
            outputs=[
                io.Image.Output(
                    tooltip="Attention maps, one row per token and one column per frame, and each token's share."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, positive, latent, percent: float, seed: int = 0) -> io.NodeOutput:
        attention = token_attention(model, positive, latent, percent=percent, seed=seed)
        return cls.output(draw_token_attention(attention.maps, timestep=attention.timestep))


NODES = [XTSlice, VideoContinuity, MitigatingGradientPlot, NoiseNormality, MappingShift, FrameTokenAttention]
