"""StillMotion/sampling and StillMotion/control: noise levels, a guidance that changes over them, sparse ControlNets."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from comfy_api.latest import io

from ..model_patches.comfy_host.base.betas import apply_betas
from ..model_patches.comfy_host.conditions.control import limit_to_frames, parse_frames
from ..model_patches.comfy_host.guidance.stepped import apply_stepped_cfg
from ..model_patches.comfy_host.vidrd.reuse import ReuseNoise, ReuseSampler
from ..model_patches.core.levels import BETA_END, BETA_START, SCHEDULES
from ..model_patches.harivo.stepped import EARLY, LATE, SWITCH, SteppedScale
from ..model_patches.vidrd.reuse import RULES, Rule
from ..model_patches.vidrd.reuse import Config as ReuseConfig
from .sockets import CATEGORY


class SteppedCFG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_SteppedCFG",
            display_name="Stepped CFG",
            category=f"{CATEGORY}/guidance",
            description="Guides strongly while there is much noise and normally later (HARIVO): content and motion "
            "follow the prompt without burnt colours. Works with every sampler and any model that is guided.",
            search_aliases=["HARIVO", "cfg schedule", "dynamic cfg", "guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The model to guide; other CFG patches go before this node."),
                io.Float.Input(
                    "early_cfg",
                    default=EARLY,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale near noise, no unit. The paper says 10 to 15.",
                ),
                io.Float.Input(
                    "late_cfg",
                    default=LATE,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale afterwards, no unit; 7.5 in the paper. The sampler's own cfg is not used.",
                ),
                io.Float.Input(
                    "switch_t",
                    default=SWITCH,
                    min=0.01,
                    max=0.99,
                    step=0.01,
                    tooltip="Time at which it changes, as a fraction of the noise schedule: 1 is pure noise, 0 the "
                    "finished video. It does not depend on the sampler's steps.",
                ),
                io.String.Input(
                    "schedule",
                    default="",
                    advanced=True,
                    tooltip='More than two steps, as "t:cfg" pairs with falling t, instead of the values above: '
                    '"0.9:15, 0.7:10, 0:7.5". Empty: the values above.',
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, early_cfg: float, late_cfg: float, switch_t: float, schedule: str = "") -> io.NodeOutput:
        given = schedule.strip()
        scale = SteppedScale.parse(given) if given else SteppedScale(((switch_t, early_cfg), (0.0, late_cfg)))
        return io.NodeOutput(apply_stepped_cfg(model, scale))


class ModelSamplingBetas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ModelSamplingBetas",
            display_name="Model Sampling Betas",
            category=f"{CATEGORY}/sampling",
            description="Noise levels of the sampling from a beta schedule: HARIVO and AnimateDiff are trained with "
            "linear betas, Stable Diffusion with scaled_linear ones. For every model that predicts eps or v.",
            search_aliases=["linear betas", "beta schedule", "noise schedule", "model sampling", "sqrt_linear"],
            inputs=[
                io.Model.Input("model", tooltip="Behind Apply Motion Model, if its choice shall be replaced."),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="linear",
                    tooltip="linear: a straight line of betas (video models). scaled_linear: the square of one "
                    "(Stable Diffusion).",
                ),
                io.Float.Input(
                    "beta_start",
                    default=BETA_START,
                    min=0.00001,
                    max=0.5,
                    step=0.00001,
                    round=0.000001,
                    tooltip="Beta of the first timestep, a variance without unit.",
                ),
                io.Float.Input(
                    "beta_end",
                    default=BETA_END,
                    min=0.00001,
                    max=0.5,
                    step=0.0001,
                    round=0.000001,
                    tooltip="Beta of the last of 1000 timesteps, a variance without unit.",
                ),
            ],
            outputs=[io.Model.Output()],
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
            description="Lets the ControlNet in front of it act on a few frames of the clip only, the first and the "
            "last for example; the motion model does the rest.",
            search_aliases=["sparse control", "keyframes", "first and last frame", "ControlNet batch"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="From Apply ControlNet."),
                io.Conditioning.Input("negative", tooltip="From Apply ControlNet."),
                io.String.Input(
                    "frames_with_control",
                    default="0, -1",
                    tooltip="Frames, counted from 0; -1 is the last. Ranges: 4:8 is 4 to 7. A strength for each: "
                    "0=1, -1=0.5, on top of the ControlNet's own. all: every frame.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Frames of one clip, as in Apply Motion Model. The ControlNet takes 1 image, one for each "
                    "frame with control, or one for each frame of the clip.",
                ),
            ],
            outputs=[io.Conditioning.Output("positive_out"), io.Conditioning.Output("negative_out")],
        )

    @classmethod
    def execute(cls, positive, negative, frames_with_control: str, frames: int) -> io.NodeOutput:
        chosen = parse_frames(frames_with_control, frames)
        return io.NodeOutput(*limit_to_frames((positive, negative), chosen, frames))


class ReuseAndDiffuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_ReuseAndDiffuse",
            display_name="Reuse and Diffuse",
            category=f"{CATEGORY}/sampling",
            description="A long video as clips that continue each other (VidRD): each begins with noise and latents of "
            "the one before, in reverse. Needs no training. For SamplerCustomAdvanced; the latent batch is the whole "
            "video, the motion model's frames are those of one clip.",
            search_aliases=["VidRD", "long video", "frame noise reuse", "staged guidance", "FreeNoise"],
            inputs=[
                io.Noise.Input("noise", tooltip="Such as RandomNoise: new noise for all frames."),
                io.Sampler.Input("sampler", tooltip="Such as KSamplerSelect: euler, ddim, dpmpp_2m, uni_pc, heun, ..."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Frames of one clip. The batch size of the latent is a multiple of it.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=0,
                    max=4096,
                    tooltip="M: frames at the beginning of a clip that continue the one before; at most half of a "
                    "clip keeps new frames coming.",
                ),
                io.Float.Input(
                    "recycle",
                    default=4.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="alpha: how much of a clip's other noise is old, no unit. 0 is all new, 4 is 97 %.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="beta: fraction of the steps in which the first frame is put where the clip before had it; "
                    "less for the frames after it. 1 repeats them in reverse.",
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
                    tooltip="Ancestral and SDE samplers: reuse the noise that they add at each step, too. Keeps it in "
                    "memory: one latent of a clip for each step.",
                ),
            ],
            outputs=[
                io.Noise.Output("NOISE", tooltip="For SamplerCustomAdvanced."),
                io.Sampler.Output("SAMPLER", tooltip="For SamplerCustomAdvanced. It samples clip by clip."),
            ],
        )

    @classmethod
    def execute(
        cls,
        noise,
        sampler,
        frames: int,
        overlap: int,
        recycle: float,
        guidance: float,
        rule: Rule = RULES[0],
        reuse_step_noise: bool = False,
    ) -> io.NodeOutput:
        config = ReuseConfig(overlap=overlap, recycle=recycle, guidance=guidance, rule=rule)
        config.check(frames)
        return io.NodeOutput(
            ReuseNoise(noise, frames, config), ReuseSampler(sampler, frames, config, step_noise=reuse_step_noise)
        )


NODES = [SteppedCFG, ModelSamplingBetas, ControlNetFrames, ReuseAndDiffuse]
