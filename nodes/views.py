"""StillMotion/views: what a method did, drawn. Each node shows its picture on itself and hands it on as an image."""

# V3 nodes take their inputs by name, so every `execute` has its own signature.
# pyright: reportIncompatibleMethodOverride=false

from comfy_api.latest import io, ui

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
from ..model_patches.comfy_host.views import mapped_noise, mapping_probe, noise_clips, token_attention, watched
from ..rendering import reader
from .sockets import CATEGORY, GuidanceReadout

VIEWS = f"{CATEGORY}/views"


class View(io.ComfyNode):
    """A node that draws."""

    @classmethod
    def shown(cls, picture, *texts: str) -> io.NodeOutput:
        image = as_batch(picture)
        return io.NodeOutput(image, *texts, ui=ui.PreviewImage(image, cls=cls))


class XTSlice(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_XTSlice",
            display_name="X-T Slice",
            category=VIEWS,
            description="One line of pixels of a video over time. Even motion draws a slanted line, rest a straight "
            "one, flicker a broken one.",
            search_aliases=["flicker", "temporal consistency", "space-time slice", "HARIVO"],
            inputs=[
                io.Image.Input("images", tooltip="The frames of one video, in order."),
                io.Combo.Input(
                    "line",
                    options=list(LINES),
                    default=LINES[0],
                    tooltip="row: a horizontal line, for motion to the left and right. column: a vertical one, for "
                    "motion up and down.",
                ),
                io.Float.Input(
                    "position",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where the line lies, as a fraction of the height (row) or of the width (column): 0 is the "
                    "top or left edge.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The middle frame with the line marked, and the slice."),
                io.String.Output("measures", tooltip="Mean first and second difference over time, pixels in 0 to 1."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, line: str, position: float) -> io.NodeOutput:
        frames = from_batch(images)
        return cls.shown(draw_xt_slice(frames, line=line, position=position), flicker_text(frames))


class VideoContinuity(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_VideoContinuity",
            display_name="Video Continuity",
            category=VIEWS,
            description="How a long video holds together: seams between its clips, flicker, drift of its colours, and "
            "clips that play the one before backwards. Read from the file frame by frame.",
            search_aliases=["seam", "drift", "flicker", "content cycling", "long video", "VidRD"],
            inputs=[
                io.Video.Input("video", tooltip="The video to read; of any length."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=2,
                    max=4096,
                    tooltip="Frames of one clip, as it was sampled. Joins are looked for after every so many frames.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="Seams, mirrored repeats, flicker and drift, drawn over the video."),
                io.String.Output("measures", tooltip="The same in numbers, a line for each clip; pixels in 0 to 1."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, video, frames: int) -> io.NodeOutput:
        start, duration = video.get_active_trim_window()
        images = reader.frames(video.get_stream_source(), start=start, duration=duration)
        found = continuity.read(watched(images, video.get_frame_count()), frames)
        return cls.shown(draw_continuity(found), continuity_text(found))


class MitigatingGradientPlot(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_MitigatingGradientPlot",
            display_name="Mitigating Gradient Plot",
            category=VIEWS,
            description="How strongly the mitigating gradient pulled at every model call of the run that made this "
            "latent. Guidance Readout tells the same in numbers.",
            search_aliases=["HARIVO", "guidance strength"],
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's output; it tells which run is meant."),
                GuidanceReadout.Input("readout", tooltip="From the Mitigating Gradient node of the sampled model."),
            ],
            outputs=[io.Image.Output(tooltip="Change of the noise prediction, frame difference, and alpha, per call.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, readout) -> io.NodeOutput:
        record, remark = readout.find(latent["samples"])
        if record is None:
            raise ValueError(f"mitigating gradient plot: {remark}")
        return cls.shown(draw_guidance(record.calls, remark + record.settings))


class NoiseNormality(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_NoiseNormality",
            display_name="Noise Normality",
            category=VIEWS,
            description="Does the noise of whole videos look independent and normal? Jarque-Bera test, as in HARIVO.",
            search_aliases=["Jarque-Bera", "noise statistics", "HARIVO", "gaussian"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="With noise connected, its shape alone counts. Else it is tested itself. Use a batch of "
                    "many videos: 64 or more make a figure.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Frames of one video: a divisor of the batch size. Each video is one sample of the test. "
                    "Not used by latents with a frame axis of their own.",
                ),
                io.Noise.Input("noise", optional=True, tooltip="The noise to test, such as from RandomNoise."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A model with a HARIVO mapping network at work: the same noise is also tested behind it.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The table."),
                io.String.Output("table", tooltip="The table as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, frames: int, noise=None, model=None) -> io.NodeOutput:
        name = "latent" if noise is None else "noise"
        clips = noise_clips(latent, noise, frames)
        found = {name: normality(clips)}
        if model is not None:
            found["after the mapping"] = normality(mapped_noise(model, clips))
        return cls.shown(draw_normality(found), normality_text(found))


class MappingShift(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_MappingShift",
            display_name="Mapping Shift",
            category=VIEWS,
            description="What HARIVO's mapping network does to mean and deviation of the noisy latent at every noise "
            "level, and how large its change is. The image model is not run.",
            search_aliases=["HARIVO", "mapping network", "figure A1"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a HARIVO file applied, mapping above 0."),
                io.Latent.Input(
                    "latent",
                    tooltip="Clean latents of a video, such as a sampler's output or encoded frames; noise of every "
                    "level is added to them.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    advanced=True,
                    tooltip="Seed of the added noise.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Mean, standard deviation and size of the change over the timestep t.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, latent, seed: int = 0) -> io.NodeOutput:
        return cls.shown(draw_mapping_shift(mapping_shift(**mapping_probe(model, latent), seed=seed)))


class FrameTokenAttention(View):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_FrameTokenAttention",
            display_name="Frame Token Attention",
            category=VIEWS,
            description="Where in each frame HARIVO's frame-wise tokens are looked at. Runs the model once, on the "
            "latent with noise added.",
            search_aliases=["HARIVO", "attention map", "frame-wise tokens"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a HARIVO file applied, tokens above 0."),
                io.Conditioning.Input("positive", tooltip="The prompt of the video."),
                io.Latent.Input("latent", tooltip="The video, such as the sampler's output."),
                io.Float.Input(
                    "percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far in the schedule, as a fraction: 0 is pure noise, 1 the finished video.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    advanced=True,
                    tooltip="Seed of the added noise.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="One row a token, one column a frame, and the tokens' shares per frame.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, positive, latent, percent: float, seed: int = 0) -> io.NodeOutput:
        found = token_attention(model, positive, latent, percent=percent, seed=seed)
        return cls.shown(draw_token_attention(found.maps, timestep=found.timestep))


NODES = [XTSlice, VideoContinuity, MitigatingGradientPlot, NoiseNormality, MappingShift, FrameTokenAttention]
