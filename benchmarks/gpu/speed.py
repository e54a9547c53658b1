"""Speed and memory: medians of CUDA events, after a warm-up, in one process; weights are random unless named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..common.pocket_host import ARTV
from ..cost.bench_artv import FRAMES, TABLE_3, Subject, random_artv, table_3
from ..cost.bench_temporal import diffusers_unet
from . import machine, networks
from .machine import Setup, Timer
from .systems import DREAMVIDEO, TEXT, load_host
from .systems import decoder as temporal_vae

SD15_GB, SD21_GB, TABLE_3_GB = 10.0, 8.0, 16.0


class TimedModel:
    """A MODEL whose calls are timed. patch: what is added inside the timed part; kind: the wrapper that is timed."""

    def __init__(self, setup: Setup, model: Any, patch: Callable[[Any], Any] = lambda m: m, kind: str = "") -> None:
        from comfy.patcher_extension import WrappersMP

        self.setup, self.timer = setup, Timer(setup)
        self.input: tuple[Tensor, ...] = ()
        self.output = torch.empty(0)
        clone = model.clone()
        # wrappers run in the order in which they were added: this one encloses everything that the patch adds
        clone.add_wrapper_with_key(kind or WrappersMP.APPLY_MODEL, "bench", self.timer.call)
        self.model = patch(clone)
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench", self.keep)

    def keep(self, executor: Any, x: Tensor, timesteps: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.input = (x, timesteps, context)
        self.output = executor(x, timesteps, context, *args, **kwargs)
        return self.output

    @torch.inference_mode()
    def run(self, noise: Tensor, conditioning: list, steps: int) -> None:
        """Euler without guidance: one call of the network in each step."""
        from comfy import sample

        sampling = (steps, 1.0, "euler", "normal", conditioning, conditioning, torch.zeros_like(noise))
        sample.sample(self.model, noise, *sampling, disable_pbar=True, seed=0)


def inputs(setup: Setup, family: str = "SD15") -> tuple[Tensor, list]:
    """Noise for 16 frames of 64 x 64 latents, and a conditioning."""
    frames, size = (4, 16) if setup.tiny else (16, 64)
    draw = torch.Generator().manual_seed(4)
    noise = torch.randn(frames, 4, size, size, generator=draw)
    return noise, [[torch.randn(1, 77, networks.context_width(setup, family), generator=draw), {}]]


def sd15(setup: Setup) -> dict[str, Any]:
    """One forward of SD1.5's U-Net: plain, with our motion model, diffusers' UNetMotionModel, AnimateDiff-Evolved."""
    from comfy import model_management

    from ...model_patches.comfy_host.motion.apply import apply_motion

    machine.require_memory(setup, 1.0 if setup.tiny else SD15_GB)
    model, weights = networks.unet_model(setup), networks.motion_weights(setup)
    noise, conditioning = inputs(setup)
    frames = len(noise)

    def moving(group_norm: str) -> TimedModel:
        motion = networks.loaded_motion(setup, weights, group_norm)
        return TimedModel(setup, model, lambda m: apply_motion(m, motion, frames=frames))

    timed = {"plain": TimedModel(setup, model), "ours": moving("per_frame")}
    figures: dict[str, Any] = {}
    if setup.evolved is not None:
        from ..common.evolved import evolved_motion

        folder = setup.evolved
        timed["evolved"] = TimedModel(setup, model, lambda m: evolved_motion(folder, m, weights))
    for name, network in timed.items():
        model_management.unload_all_models()  # of the network before
        with machine.peak(setup, figures, f"{name}_peak_gb"):
            network.run(noise, conditioning, setup.rounds + 2)
        figures[f"{name}_seconds"] = network.timer.median(2)
    same_rule = moving("per_clip")
    same_rule.run(noise, conditioning, 1)
    x, timesteps, context = same_rule.input
    model_management.unload_all_models()
    sizes = networks.channels(setup), networks.context_width(setup)
    unet = diffusers_unet(model.model.diffusion_model.state_dict(), weights, *sizes)
    unet.to(setup.device)
    clip = x.unflatten(0, (-1, frames)).transpose(1, 2)  # (b, c, f, h, w)
    outputs: list[Tensor] = []

    @torch.inference_mode()
    def diffusers_forward() -> None:
        outputs[:] = [unet(clip, timesteps[0], context, return_dict=False)[0]]

    with machine.peak(setup, figures, "diffusers_peak_gb"):
        figures["diffusers_seconds"] = machine.median_seconds(setup, diffusers_forward)
    plain = figures["plain_seconds"]
    for name in ("ours", "diffusers", "evolved"):
        if f"{name}_seconds" in figures:
            figures[f"{name}_added_seconds"] = figures[f"{name}_seconds"] - plain
            figures[f"{name}_over_plain"] = figures[f"{name}_seconds"] / plain
    if "evolved" in timed:
        figures["ours_added_over_evolved"] = figures["ours_added_seconds"] / figures["evolved_added_seconds"]
    figures["error_against_diffusers"] = machine.relative_error(
        same_rule.output, outputs[0].transpose(1, 2).flatten(0, 1)
    )
    return machine.check(figures, {"error_against_diffusers": ("<=", 1e-4 if setup.cpu else 0.02)})


def guidance(setup: Setup) -> dict[str, Any]:
    """The time that Mitigating Gradient adds to a step of SD1.5's U-Net for 16 frames."""
    from comfy.patcher_extension import WrappersMP

    from ...model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient
    from ...model_patches.harivo.mitigating import Config

    machine.require_memory(setup, 1.0 if setup.tiny else SD15_GB)
    model = networks.unet_model(setup)
    noise, conditioning = inputs(setup)

    def guided(m: Any) -> Any:
        return apply_mitigating_gradient(m, Config(), frames=len(noise))[0]

    plain = TimedModel(setup, model, kind=WrappersMP.PREDICT_NOISE)
    mitigated = TimedModel(setup, model, guided, kind=WrappersMP.PREDICT_NOISE)
    for network in (plain, mitigated):
        network.run(noise, conditioning, setup.rounds + 2)
    seconds = {"plain_seconds": plain.timer.median(2), "guided_seconds": mitigated.timer.median(2)}
    return {**seconds, "added_share": seconds["guided_seconds"] / seconds["plain_seconds"] - 1}


def artv(setup: Setup) -> dict[str, Any]:
    """Forwards of ART-V for 16 frames at the sizes of the paper's Table 3; on the pocket with --tiny."""
    from ...model_patches.artv.config import SD21
    from ...model_patches.comfy_host.artv.files import load_artv

    sizes, frames = list(TABLE_3), FRAMES
    with torch.inference_mode():
        if setup.tiny:
            host, (sizes, frames) = load_host(), ([128], 2)
            conditions = host.condition([TEXT]), host.condition([""])
            subject = Subject(host.model, load_artv(ARTV), (4, 16, 16), *conditions)
        else:
            machine.require_memory(setup, TABLE_3_GB)
            dtype = torch.float32 if setup.cpu else torch.float16
            conditions = inputs(setup, "SD21")[1], inputs(setup, "SD21")[1]
            subject = Subject(networks.unet_model(setup, "SD21"), random_artv(SD21, dtype), (4, 40, 40), *conditions)
        table = table_3(subject, sizes, frames, setup.rounds)
    figures: dict[str, Any] = {}
    for pixels in sizes:
        figures[f"batches_per_second_{pixels}"] = table["batches_per_second"][pixels]
        figures[f"peak_gb_{pixels}"] = table["memory_gb"][pixels]
        if pixels in TABLE_3:
            figures[f"paper_a100_{pixels}"] = TABLE_3[pixels]
    return figures


def retention(setup: Setup) -> dict[str, Any]:
    """What DreamVideo's retention branch adds to a step, and what a ControlNet of the same size adds (SD 2.1)."""
    from ...model_patches.comfy_host.dreamvideo.retention import apply_retention, hold_branch, load_branch
    from ..cost.bench_dreamvideo import Timed, branch_file, stock

    figures: dict[str, Any] = {}
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    if setup.tiny:
        host = load_host()
        model, conditioning, noise = host.model, host.condition([TEXT]), torch.randn(4, 4, 16, 16)
        nets = {"branch": apply_retention((conditioning,), load_branch(DREAMVIDEO), image)[0]}
        figures["controlnet_skipped"] = "the pocket's ControlNet is not carried"
    else:
        machine.require_memory(setup, SD21_GB)
        model, (noise, conditioning) = networks.unet_model(setup, "SD21"), inputs(setup, "SD21")
        image = image.repeat(1, 8, 8, 1)
        file = branch_file(temporal=False)
        dtype = torch.float32 if setup.cpu else torch.float16
        file = replace(file, weights={name: weight.to(dtype) for name, weight in file.weights.items()})
        options = {"control": stock(file, image), "control_apply_to_uncond": False}
        nets = {"branch": apply_retention((conditioning,), hold_branch(file), image)[0]}
        nets["controlnet"] = [[context, extras | options] for context, extras in conditioning]
    for name, condition in nets.items():
        timed = Timed(model)
        with machine.peak(setup, figures, f"{name}_peak_gb"), torch.inference_mode():
            run_timed(timed, noise, condition, setup.rounds + 2)
        extra = sorted(timed.extra_seconds(step) for step in range(2, setup.rounds + 2))
        figures[f"{name}_added_seconds"] = extra[len(extra) // 2]
    return figures


def run_timed(timed: Any, noise: Tensor, conditioning: list, steps: int) -> None:
    from comfy import sample

    sampling = (steps, 1.0, "euler", "normal", conditioning, conditioning, torch.zeros_like(noise))
    sample.sample(timed.model, noise, *sampling, disable_pbar=True, seed=0)


@torch.inference_mode()
def decoder_frames(setup: Setup, vae: Any, count: int, size: int) -> None:
    """Decode `count` frames as a stream of parts of 8."""
    draw = torch.Generator().manual_seed(6)
    parts = (torch.randn(min(8, count - first), 4, size, size, generator=draw) for first in range(0, count, 8))
    for _ in vae.decode_stream(parts):
        pass
    machine.synchronise(setup)


def decoder(setup: Setup) -> dict[str, Any]:
    """The pocket's temporal decoder over a stream of frames: memory does not grow with their number."""
    vae = temporal_vae(load_host())
    short, count, size = (16, 32, 16) if setup.tiny else (32, 256, 64)
    figures: dict[str, Any] = {"pixels": size * 4}
    decoder_frames(setup, vae, 16, size)
    with machine.peak(setup, figures, "short_peak_gb"):
        decoder_frames(setup, vae, short, size)
    timer = Timer(setup)
    with machine.peak(setup, figures, "peak_gb"):
        timer.call(decoder_frames, setup, vae, count, size)
    figures |= {"frames": count, "seconds_per_frame": timer.seconds()[0] / count}
    growth = 0.0 if setup.cpu else figures["peak_gb"] / figures["short_peak_gb"] - 1
    return machine.check({**figures, "growth": growth}, {"growth": ("<=", 0.05)})
