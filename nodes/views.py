"""StillMotion/views: what a method did, drawn. Each node shows its picture on itself and hands it on as an image."""

# V3 nodes take their inputs by name, so every `execute` has its own signature.
# pyright: reportIncompatibleMethodOverride=false

from comfy_api.latest import io, ui

from ..evaluation.statistics import normality
from ..evaluation.views import (
    LINES,
    as_batch,
    draw_guidance,
    draw_normality,
    draw_xt_slice,
    flicker_text,
    from_batch,
    normality_text,
)
from ..model_patches.comfy_host.views import noise_clips
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
            ],
            outputs=[
                io.Image.Output(tooltip="The table."),
                io.String.Output("table", tooltip="The table as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, frames: int, noise=None) -> io.NodeOutput:
        name = "latent" if noise is None else "noise"
        found = {name: normality(noise_clips(latent, noise, frames))}
        return cls.shown(draw_normality(found), normality_text(found))


NODES = [XTSlice, MitigatingGradientPlot, NoiseNormality]
