"""The cost of the image-retention branch at Stable Diffusion 2.1's sizes: random weights, fp32, one thread of a CPU.

The branch (without temporal layers) and a stock ControlNet have the same tensors, in diffusers' names, and run in turn
with the same U-Net, frames and image. The cost of either is the time of the sampler's call minus that of the U-Net. It
is reported separately for the first step of a run: the branch encodes the image only in that step, a ControlNet in
every step. Times are the least of the rounds, in CPU time of the process.

Keys: `over_controlnet` (seconds that the branch adds over those that the ControlNet adds, first step) and
`over_controlnet_later` (a later step); `over_controlnet_frozen` (first step, with frozen temporal layers in the branch,
which a ControlNet does not have; only with --temporal); `over_plain` (a later step with the branch over one without);
`batched_over_separate` (a step of double-condition guidance, three conditions, in one batch over one in three calls);
`memory_mb` and `memory_controlnet_mb` (weights and the peak of the network's own tensors, in 10^6 bytes);
`max_abs_error` (largest difference between the latents of the two, which should be 0). Needs 12 GB.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...model_patches.assembly import dreamvideo_model
from ...model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from ...model_patches.systems import DREAMVIDEO
from ...model_patches.vidrd.config import VidrdConfig
from ..common.pocket_host import one_by_one, start_comfyui
from ..common.report import finish
from .bench_artv import clock
from .bench_harivo import peak_of, weights_of
from .bench_temporal import random_weight
from .sd21 import CONTEXT, sd21_model, weight_shapes

PREFIX = "branch."


class Timed:
    """A MODEL that records the seconds of the sampler's calls, and the share of the U-Net in them."""

    def __init__(self, model: Any) -> None:
        from comfy.patcher_extension import WrappersMP

        self.call_seconds: list[float] = []
        self.network_seconds: list[float] = []
        self.rows: list[int] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "bench", self.call)
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", self.network)

    def call(self, executor: Any, *args: Any) -> Any:
        self.network_seconds.append(0.0)
        start_time = clock()
        result = executor(*args)
        self.call_seconds.append(clock() - start_time)
        return result

    def network(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        start_time = clock()
        result = executor(x, *args, **kwargs)
        self.network_seconds[-1] += clock() - start_time
        self.rows.append(len(x))
        return result

    def extra_seconds(self, step: int) -> float:
        """Seconds of a call that are not spent in the U-Net."""
        return self.call_seconds[step] - self.network_seconds[step]


def branch_file(temporal: bool) -> Any:
    """A DreamVideo checkpoint with the paper's sizes and random weights."""
    from ...model_patches import checkpoint

    sizes: dict[str, Any] = {"block_channels": (320, 640, 1280, 1280), "attention": (True, True, True, False)}
    layers = VidrdConfig(**sizes, heads=(5, 10, 20, 20), context_dim=CONTEXT).to_dict() if temporal else None
    branch = RetentionConfig(temporal="frozen" if temporal else "none")
    config = DreamVideoConfig(branch=branch, layers=layers)
    generator = torch.Generator().manual_seed(0)
    shapes = weight_shapes(dreamvideo_model, config)
    weights = {name: random_weight(name, shape, generator) for name, shape in shapes.items()}
    return checkpoint.Checkpoint(DREAMVIDEO, config.to_dict(), weights, {}, "random")


def stock(file: Any, image: Tensor) -> Any:
    """ComfyUI's own ControlNet with the weights of a branch, and with its image."""
    import comfy.controlnet

    weights = {name.removeprefix(PREFIX): w for name, w in file.weights.items()}
    return comfy.controlnet.load_controlnet_state_dict(weights).set_cond_hint(image.movedim(-1, 1))


class Bench:
    """The U-Net, its inputs, and the image."""

    def __init__(self, frames: int, size: int) -> None:
        draw = torch.Generator().manual_seed(4)
        self.model = sd21_model()
        self.single = one_by_one(self.model)
        self.noise = torch.randn(frames, 4, size, size, generator=draw)
        self.image = torch.rand(1, 8 * size, 8 * size, 3, generator=draw)
        self.conditioning, self.empty = ([[torch.randn(1, 77, CONTEXT, generator=draw), {}]] for _ in range(2))

    def run(self, conditioning: list, steps: int = 1) -> tuple[Timed, Tensor]:
        """Run `steps` steps of Euler without guidance."""
        from comfy import sample

        timed, latent = Timed(self.model), torch.zeros_like(self.noise)
        euler = (1.0, "euler", "normal", conditioning, conditioning, latent)
        latents = sample.sample(timed.model, self.noise, steps, *euler, disable_pbar=True)
        return timed, latents

    def with_branch(self, branch: Any) -> list:
        from ...model_patches.comfy_host.dreamvideo.retention import apply_retention

        return apply_retention((self.conditioning,), branch, self.image)[0]

    def with_controlnet(self, net: Any) -> list:
        options = {"control": net, "control_apply_to_uncond": False}
        return [[context, extras | options] for context, extras in self.conditioning]

    def guided_seconds(self, positive: list, *, separate: bool) -> float:
        """Seconds of a step of double-condition guidance, its three conditions in one batch or in three calls."""
        from comfy.samplers import sampler_object

        from ...model_patches.comfy_host.dreamvideo.guider import double_condition_guider

        timed = Timed(self.single if separate else self.model)
        guider = double_condition_guider(timed.model, positive, self.empty, text=7.5, image=2.0)
        sigmas, n = torch.tensor([10.0, 0.0]), len(self.noise)
        guider.sample(self.noise, 0 * self.noise, sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
        if timed.rows != ([n] * 3 if separate else [3 * n]):
            raise SystemExit(f"the MODEL was called with batches of {timed.rows}: there is too little free memory")
        return timed.call_seconds[0]

    def memory(self, branch: Any, net: Any) -> dict[str, float]:
        """Megabytes of either network: its weights, and the peak of its own tensors in a forward."""
        n, module, controlnet = len(self.noise), branch.patcher.model, net.control_model
        t, context, image = (
            torch.full((n,), 500.0),
            self.conditioning[0][0].expand(n, -1, -1),
            self.image.movedim(-1, 1),
        )
        hint = image.expand(n, -1, -1, -1)
        works: dict[str, tuple[Any, Callable[[], Any]]] = {
            "memory_mb": (module, lambda: module(self.noise, t, context, module.encode(image))),
            "memory_controlnet_mb": (
                controlnet,
                lambda: controlnet(x=self.noise, hint=hint, timesteps=t, context=context),
            ),
        }
        return {name: (weights_of(network) + peak_of(work)) / 1e6 for name, (network, work) in works.items()}


def compare(bench: Bench, conditions: dict[str, list], rounds: int) -> tuple[dict[str, float], float]:
    """Times of the conditions, and the largest difference between the latents of the first two.

    The times are the least seconds that each adds to the first step of a run and to a later step, and the least seconds
    of the U-Net in a step.
    """
    first: dict[str, list[float]] = {name: [] for name in conditions}
    later, networks = {name: [] for name in conditions}, {name: [] for name in conditions}
    outputs: list[Tensor] = []
    for i in range(rounds):
        for name, conditioning in conditions.items():
            timed, latents = bench.run(conditioning, 2)
            first[name].append(timed.extra_seconds(0))
            later[name].append(timed.extra_seconds(1))
            networks[name] += timed.network_seconds
            outputs += [latents] if i == 0 else []
            print(f"{name}: adds {timed.extra_seconds(0):.2f} s, then {timed.extra_seconds(1):.2f} s", flush=True)
    figures = {f"first_{name}": min(values) for name, values in first.items()}
    figures |= {f"later_{name}": min(values) for name, values in later.items()}
    figures |= {f"unet_{name}": min(values) for name, values in networks.items()}
    return figures, (outputs[0] - outputs[1]).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each network; the shortest time counts")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="height and width of the latent, a multiple of 8")
    parser.add_argument("--temporal", action="store_true", help="also a branch with frozen temporal layers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start_comfyui(cpu=True)
    from ...model_patches.comfy_host.dreamvideo.retention import hold_branch

    bench, file = Bench(options.frames, options.size), branch_file(temporal=False)
    with torch.inference_mode():
        net, branch = stock(file, bench.image), hold_branch(file)
        conditions = {
            "branch": bench.with_branch(branch),
            "controlnet": bench.with_controlnet(net),
            "plain": bench.conditioning,
        }
        if options.temporal:
            conditions["frozen"] = bench.with_branch(hold_branch(branch_file(temporal=True)))
        bench.run(bench.conditioning)  # warm-up
        seconds, error = compare(bench, conditions, options.rounds)
        kinds = {separate: [] for separate in (False, True)}
        for _ in range(max(1, options.rounds - 1)):
            for separate, values in kinds.items():
                values.append(bench.guided_seconds(conditions["branch"], separate=separate))
                print(f"guidance, {'three calls' if separate else 'one batch'}: {values[-1]:.2f} s", flush=True)
        megabytes = bench.memory(branch, net)
    figures = {
        "over_controlnet": seconds["first_branch"] / seconds["first_controlnet"],
        "over_controlnet_later": seconds["later_branch"] / seconds["later_controlnet"],
        "over_plain": 1 + seconds["later_branch"] / seconds["unet_plain"],
        "batched_over_separate": min(kinds[False]) / min(kinds[True]),
        **megabytes,
        "max_abs_error": error,
    }
    if options.temporal:
        figures["over_controlnet_frozen"] = seconds["first_frozen"] / seconds["first_controlnet"]
    finish("dreamvideo", figures | {f"seconds_{name}": value for name, value in seconds.items()})


if __name__ == "__main__":
    main()
