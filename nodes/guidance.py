"""StillMotion/guidance: the mitigating gradient, and a table of what it did."""

# V3 nodes take their inputs by name, so every `execute` has its own signature.
# pyright: reportIncompatibleMethodOverride=false

from dataclasses import replace

from comfy_api.v0_0_2 import io, ui

from ..model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient
from ..model_patches.harivo.mitigating import BANDWIDTHS, JACOBIANS, KERNELS, Config
from .common.sockets import CATEGORY, GradientOptions, GuidanceReadout

DEFAULTS = Config()


class MitigatingGradientOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_MitigatingGradientOptions",
            display_name="Mitigating Gradient Options",
            category=f"{CATEGORY}/options",
            description="Settings of Mitigating Gradient (HARIVO): how it measures the similarity of two frames, and "
            "how alpha is scaled. Without this node the paper's values are used.",
            search_aliases=["HARIVO", "kernel bandwidth", "jacobian"],
            inputs=[
                io.Combo.Input(
                    "bandwidth",
                    options=list(BANDWIDTHS),
                    default=DEFAULTS.bandwidth,
                    tooltip="Scale of the differences between frames. median_log: measured from the clip at every "
                    "step. fixed: the value of variance at every step, so that a smooth clip is hardly changed.",
                ),
                io.Float.Input(
                    "variance",
                    default=DEFAULTS.variance,
                    min=0.0001,
                    max=10.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="Used by bandwidth fixed: variance of the difference between two frames, per latent "
                    "element, in squared latent units.",
                ),
                io.Combo.Input(
                    "jacobian",
                    options=list(JACOBIANS),
                    default=DEFAULTS.jacobian,
                    tooltip="plain: matches the paper's values of alpha. exact: the full chain rule, which is much "
                    "stronger in the first steps; start with alpha 10.",
                ),
                io.Boolean.Input(
                    "compensate_size",
                    default=DEFAULTS.compensate_size,
                    tooltip="Give alpha the same effect at every width and height. The paper's 40 is for 256 x 256 "
                    "pixels.",
                ),
                io.Boolean.Input(
                    "compensate_frames",
                    default=DEFAULTS.compensate_frames,
                    tooltip="Give alpha the same effect for every number of frames. The paper's 40 is for 24 frames.",
                ),
            ],
            outputs=[GradientOptions.Output("options", tooltip="Connect them to Mitigating Gradient.")],
        )

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        return io.NodeOutput(Config(**options))


class MitigatingGradient(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_MitigatingGradient",
            display_name="Mitigating Gradient",
            category=f"{CATEGORY}/guidance",
            description="Reduces flicker: pulls adjacent frames towards each other at every sampling step (HARIVO). "
            "Works with every sampler and with every video that is a batch of frames, with or without a motion model.",
            search_aliases=["HARIVO", "temporal smoothing", "frame consistency", "flicker"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with. If you use a motion model, apply it first."),
                io.Float.Input(
                    "alpha",
                    default=DEFAULTS.alpha,
                    min=0.0,
                    max=1000.0,
                    step=1.0,
                    tooltip="Strength, without unit. The paper's best value is 40, 20 is gentle, about 150 freezes or "
                    "breaks the clip, and 0 switches it off.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Number of frames of one video: the batch size of the latent, or a divisor of it when the "
                    "batch holds several videos. Models whose latents have a frame axis do not use it.",
                ),
                io.Combo.Input(
                    "kernel",
                    options=list(KERNELS),
                    default=DEFAULTS.kernel,
                    tooltip="How the similarity of two frames is measured. rbf: the most likely reading of the paper; "
                    "leaves hard cuts alone. log: pulls the most different pair most, best against a single bad "
                    "frame. logsum: between the two.",
                ),
                io.Float.Input(
                    "max_eps_ratio",
                    default=DEFAULTS.max_eps_ratio,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Largest change of the predicted noise, as a fraction of its size. 0 removes the limit.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the sampling it starts, as a fraction: 0 is the first step. Most of the effect "
                    "is in the first half.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the sampling it ends, as a fraction: 1 is the last step.",
                ),
                GradientOptions.Input(
                    "options",
                    optional=True,
                    tooltip="The output of Mitigating Gradient Options: how similarity is measured. Without it the "
                    "paper's values are used.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the mitigating gradient; connect it to the sampler."),
                GuidanceReadout.Output(
                    "readout",
                    tooltip="What the gradient did at every step; connect it to Guidance Readout or to the plot.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, frames: int, start_percent: float, end_percent: float, options=DEFAULTS, **strength
    ) -> io.NodeOutput:
        patched, readout = apply_mitigating_gradient(
            model, replace(options, **strength), frames=frames, start_percent=start_percent, end_percent=end_percent
        )
        return io.NodeOutput(patched, readout)


class ReadGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_GuidanceReadout",
            display_name="Guidance Readout",
            category=f"{CATEGORY}/guidance",
            description="Shows a table of what the mitigating gradient did at every model call of a sampling run.",
            search_aliases=["HARIVO", "mitigating gradient", "guidance strength", "show table", "debug"],
            inputs=[
                io.Latent.Input("latent", tooltip="The output of the sampler. It selects the run that is shown."),
                GuidanceReadout.Input("readout", tooltip="The readout output of Mitigating Gradient."),
            ],
            outputs=[io.String.Output("table", tooltip="The same table as text.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, readout) -> io.NodeOutput:
        table = readout.describe(latent["samples"])
        return io.NodeOutput(table, ui=ui.PreviewText(table))


NODES = [MitigatingGradient, MitigatingGradientOptions, ReadGuidance]
