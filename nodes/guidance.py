"""StillMotion/guidance: what moves the prediction of a step, and what it did."""

# V3 nodes take their inputs by name, so every `execute` has its own signature.
# pyright: reportIncompatibleMethodOverride=false

from comfy_api.latest import io, ui

from ..model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient
from ..model_patches.harivo.mitigating import BANDWIDTHS, JACOBIANS, KERNELS, Config
from .sockets import CATEGORY, GuidanceReadout

DEFAULTS = Config()


class MitigatingGradient(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_MitigatingGradient",
            display_name="Mitigating Gradient",
            category=f"{CATEGORY}/guidance",
            description="Draws adjacent frames together at every sampling step (HARIVO). Works with every sampler and "
            "with any video made as a batch of frames, with or without a motion model.",
            search_aliases=["HARIVO", "temporal smoothing", "frame consistency", "flicker"],
            inputs=[
                io.Model.Input("model", tooltip="The model, with its motion model already applied if there is one."),
                io.Float.Input(
                    "alpha",
                    default=DEFAULTS.alpha,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    tooltip="Strength, no unit. 40 is the paper's best, 20 is gentle, about 150 freezes or breaks the "
                    "clip, 0 is off.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Frames of one video: the batch size, or a divisor of it for several videos. Not used by "
                    "models whose latents have a frame axis of their own.",
                ),
                io.Combo.Input(
                    "kernel",
                    options=list(KERNELS),
                    default=DEFAULTS.kernel,
                    tooltip="How similarity is measured. rbf: the likeliest reading of the paper; lets hard cuts be. "
                    "log: pulls the most different pair hardest, best against one bad frame. logsum: in between.",
                ),
                io.Combo.Input(
                    "bandwidth",
                    options=list(BANDWIDTHS),
                    default=DEFAULTS.bandwidth,
                    advanced=True,
                    tooltip="median_log: measured from the clip at every step. fixed: `variance` at every step, so "
                    "that a clip which is smooth already is hardly moved.",
                ),
                io.Combo.Input(
                    "jacobian",
                    options=list(JACOBIANS),
                    default=DEFAULTS.jacobian,
                    advanced=True,
                    tooltip="plain: fits the paper's values of alpha. exact: the full chain rule, much stronger near "
                    "noise; start at alpha 10.",
                ),
                io.Float.Input(
                    "variance",
                    default=DEFAULTS.variance,
                    min=0.0001,
                    max=10.0,
                    step=0.001,
                    round=0.0001,
                    advanced=True,
                    tooltip="For bandwidth fixed: variance of the difference of two frames, per latent element.",
                ),
                io.Float.Input(
                    "max_eps_ratio",
                    default=DEFAULTS.max_eps_ratio,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Largest change of the noise prediction, as a fraction of it; 0 switches the limit off.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the schedule it begins, as a fraction: 0 is pure noise. Most of the effect is "
                    "in the first half.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the schedule it ends, as a fraction: 1 is the finished video.",
                ),
                io.Boolean.Input(
                    "compensate_size",
                    default=DEFAULTS.compensate_size,
                    advanced=True,
                    tooltip="Make alpha mean the same at every width and height (the paper's 40 is for 256 x 256 px).",
                ),
                io.Boolean.Input(
                    "compensate_frames",
                    default=DEFAULTS.compensate_frames,
                    advanced=True,
                    tooltip="Make alpha mean the same for every number of frames (the paper's 40 is for 24 frames).",
                ),
            ],
            outputs=[
                io.Model.Output(),
                GuidanceReadout.Output("readout", tooltip="For Guidance Readout: what it did at every step."),
            ],
        )

    @classmethod
    def execute(cls, model, frames: int, start_percent: float, end_percent: float, **options) -> io.NodeOutput:
        patched, readout = apply_mitigating_gradient(
            model, Config(**options), frames=frames, start_percent=start_percent, end_percent=end_percent
        )
        return io.NodeOutput(patched, readout)


class ReadGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_GuidanceReadout",
            display_name="Guidance Readout",
            category=f"{CATEGORY}/guidance",
            description="Shows what the mitigating gradient did at every model call of the run that made this latent.",
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's output; it tells which run is meant."),
                GuidanceReadout.Input("readout", tooltip="From the Mitigating Gradient node of the sampled model."),
            ],
            outputs=[io.String.Output("table", tooltip="The table as text.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, readout) -> io.NodeOutput:
        table = readout.describe(latent["samples"])
        return io.NodeOutput(table, ui=ui.PreviewText(table))


NODES = [MitigatingGradient, ReadGuidance]
