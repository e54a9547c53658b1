"""StillMotion/sampling and StillMotion/control: noise levels, CFG that depends on them, sparse ControlNets."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from comfy_api.v0_0_2 import io

from ..model_patches.comfy_host.base.betas import apply_betas
from ..model_patches.comfy_host.conditions.control import limit_to_frames, parse_frames
from ..model_patches.comfy_host.guidance.stepped import apply_stepped_cfg
from ..model_patches.comfy_host.vidrd.reuse import ReuseNoise, ReuseSampler
from ..model_patches.core.levels import BETA_END, BETA_START, SCHEDULES
from ..model_patches.harivo.stepped import EARLY, LATE, SWITCH, SteppedScale
from .common.sockets import CATEGORY
from .render import widgets
from .render.options import ReuseOptions


class SteppedCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_SteppedCFG",
            display_name="Stepped CFG",
            category=f"{CATEGORY}/guidance",
            description="Uses a high CFG scale in the noisy first part of the sampling and a normal one afterwards "
            "(HARIVO): content and motion follow the prompt without burnt colours. Works with every sampler and "
            "every model that uses CFG.",
            search_aliases=["HARIVO", "cfg schedule", "dynamic cfg", "guidance"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to sample with. Put other nodes that change CFG in front of this one."
                ),
                io.Float.Input(
                    "early_cfg",
                    default=EARLY,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale of the noisy first part, without unit. 10 to 15 in the paper.",
                ),
                io.Float.Input(
                    "late_cfg",
                    default=LATE,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale of the rest, without unit. 7.5 in the paper. The sampler's own cfg is not used.",
                ),
                io.Float.Input(
                    "switch_t",
                    default=SWITCH,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="Timestep at which the scale changes, as a fraction of the noise schedule: 1 is pure "
                    "noise, 0 is the finished video. It does not depend on the number of steps.",
                ),
                io.String.Input(
                    "schedule",
                    default="",
                    advanced=True,
                    tooltip='For more than two scales: "t:cfg" pairs with decreasing t, such as '
                    '"0.9:15, 0.7:10, 0:7.5". They replace the three values above. Empty: not used.',
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the CFG scales; connect it to the sampler.")],
        )

    @classmethod
    def execute(cls, model, early_cfg: float, late_cfg: float, switch_t: float, schedule: str = "") -> io.NodeOutput:
        pairs = schedule.strip()
        scale = SteppedScale.parse(pairs) if pairs else SteppedScale(((switch_t, early_cfg), (0.0, late_cfg)))
        return io.NodeOutput(apply_stepped_cfg(model, scale))


class ModelSamplingBetas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ModelSamplingBetas",
            display_name="Model Sampling Betas",
            category=f"{CATEGORY}/sampling",
            description="Sets the noise levels of the sampling from a beta schedule. HARIVO and AnimateDiff are "
            "trained with linear betas, Stable Diffusion with scaled_linear betas. For every model that predicts eps "
            "or v.",
            search_aliases=[
                "linear betas",
                "beta schedule",
                "noise schedule",
                "model sampling",
                "sqrt_linear",
                "HARIVO",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to sample with. Apply Motion Model, after this node, sets the noise levels of "
                    "the motion file, unless its beta_schedule is model.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="linear",
                    tooltip="linear: betas on a straight line (AnimateDiff, HARIVO). scaled_linear: the square of a "
                    "straight line (Stable Diffusion).",
                ),
                io.Float.Input(
                    "beta_start",
                    default=BETA_START,
                    min=0.00001,
                    max=0.5,
                    step=0.00001,
                    round=0.000001,
                    tooltip="Beta of the first of 1000 timesteps, a variance without unit.",
                ),
                io.Float.Input(
                    "beta_end",
                    default=BETA_END,
                    min=0.00001,
                    max=0.5,
                    step=0.0001,
                    round=0.000001,
                    tooltip="Beta of the last of the 1000 timesteps, a variance without unit.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with these noise levels; connect it to the sampler.")],
        )

    @classmethod
    def execute(cls, model, schedule: str, beta_start: float, beta_end: float) -> io.NodeOutput:
        return io.NodeOutput(apply_betas(model, schedule, beta_start, beta_end))


class ControlNetFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ControlNetFrames",
            display_name="ControlNet Frames",
            category=f"{CATEGORY}/control",
            description="Limits the ControlNet in front of it to some frames of the clip, for example the first and "
            "the last one. The motion model fills in the frames between them.",
            search_aliases=["sparse control", "SparseCtrl", "keyframes", "first and last frame", "ControlNet batch"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The positive conditioning from Apply ControlNet."),
                io.Conditioning.Input("negative", tooltip="The negative conditioning from Apply ControlNet."),
                io.String.Input(
                    "frames_with_control",
                    default="0, -1",
                    tooltip="Frame numbers, counted from 0; -1 is the last frame. A range 4:8 is 4 to 7. A strength "
                    "for a frame: 0=1, -1=0.5; it multiplies the ControlNet's own strength. all: every frame.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Number of frames of one clip, as in Apply Motion Model. The ControlNet needs one image, "
                    "one for each frame with control, or one for each frame of the clip.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive_out", tooltip="The positive conditioning, limited to the frames."),
                io.Conditioning.Output("negative_out", tooltip="The negative conditioning, limited to the frames."),
            ],
        )

    @classmethod
    def execute(cls, positive, negative, frames_with_control: str, frames: int) -> io.NodeOutput:
        strengths = parse_frames(frames_with_control, frames)
        return io.NodeOutput(*limit_to_frames((positive, negative), strengths, frames))


class ReuseAndDiffuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ReuseAndDiffuse",
            display_name="Reuse and Diffuse",
            category=f"{CATEGORY}/sampling",
            description="Samples a long video as clips that continue each other (VidRD): each clip starts from the "
            "noise and the latents of the previous clip in reverse order. Needs no training. For "
            "SamplerCustomAdvanced; the latent batch is the whole video, frames is the length of one clip.",
            search_aliases=["VidRD", "long video", "frame noise reuse", "staged guidance", "FreeNoise"],
            inputs=[
                io.Noise.Input("noise", tooltip="New noise for all frames, for example from RandomNoise."),
                io.Sampler.Input(
                    "sampler",
                    tooltip="The sampler, for example from KSamplerSelect: euler, ddim, dpmpp_2m, uni_pc or heun.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Number of frames of one clip. The batch size of the latent must be a multiple of it.",
                ),
                *widgets.reuse(),
            ],
            outputs=[
                io.Noise.Output("NOISE", tooltip="The noise of all clips; connect it to SamplerCustomAdvanced."),
                io.Sampler.Output(
                    "SAMPLER", tooltip="A sampler that samples clip by clip; connect it to SamplerCustomAdvanced."
                ),
            ],
        )

    @classmethod
    def execute(cls, noise, sampler, frames: int, **options) -> io.NodeOutput:
        reuse = ReuseOptions(**options)
        reuse.check(frames)
        return io.NodeOutput(
            ReuseNoise(noise, frames, reuse), ReuseSampler(sampler, frames, reuse, step_noise=reuse.reuse_step_noise)
        )


NODES = [SteppedCFG, ModelSamplingBetas, ControlNetFrames, ReuseAndDiffuse]
