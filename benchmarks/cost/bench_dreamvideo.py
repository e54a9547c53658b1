"""What the image-retention branch costs at Stable Diffusion 2.1's sizes: random weights, fp32, one thread of a CPU.

The branch (without temporal layers) and a stock ControlNet are made of the very same tensors, in diffusers' names, and
take turns on the same U-Net, frames and picture. What each adds is what the sampler's call takes beyond the U-Net's. It
is told for the first step of a run, in which the branch encodes the picture, which a ControlNet does at every step.
Times are the least of the rounds, the process' own.

Keys: `over_controlnet` (seconds that the branch adds over those that the ControlNet adds, first step) and
`over_controlnet_later` (a later step); `over_controlnet_frozen` (first step, with frozen temporal layers in the branch,
which a ControlNet has not; only with --temporal); `over_plain` (a later step with the branch over one without);
`batched_over_separate` (a step of double-condition guidance, three conditions, in one batch over one in three calls);
`memory_mb` and `memory_controlnet_mb` (weights and the tensors that are alive at once while it works, 10^6 bytes);
`max_abs_error` (largest difference of the latents that the two make, which should be none). Needs 12 GB.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...model_patches.assembly import dreamvideo_model
from ...model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from ...model_patches.vidrd.config import VidrdConfig
from ..common.pocket_host import one_by_one, start_comfyui
from ..common.report import finish
from .bench_artv import clock
from .bench_harivo import peak_of, weights_of
from .bench_temporal import random_weight
from .sd21 import CONTEXT, named, sd21_model

PREFIX = "branch."


class Timed:
    """A MODEL of whose calls by the sampler is known what they take, and what of it the U-Net takes."""

    def __init__(self, model: Any) -> None:
        from comfy.patcher_extension import WrappersMP

        self.calls: list[float] = []
        self.networks: list[float] = []
        self.rows: list[int] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "bench", self.call)
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", self.network)

    def call(self, executor: Any, *args: Any) -> Any:
        self.networks.append(0.0)
        begun = clock()
        found = executor(*args)
        self.calls.append(clock() - begun)
        return found

    def network(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        begun = clock()
        found = executor(x, *args, **kwargs)
        self.networks[-1] += clock() - begun
        self.rows.append(len(x))
        return found

    def added(self, step: int) -> float:
        """Seconds of a call beyond the U-Net's."""
        return self.calls[step] - self.networks[step]


def branch_file(temporal: bool) -> Any:
    """A DreamVideo file of the paper's sizes with random weights."""
    from ...model_patches import checkpoint

    sizes: dict[str, Any] = {"block_channels": (320, 640, 1280, 1280), "attention": (True, True, True, False)}
    layers = VidrdConfig(**sizes, heads=(5, 10, 20, 20), context_dim=CONTEXT).to_dict() if temporal else None
    branch = RetentionConfig(temporal="frozen" if temporal else "none")
    config = DreamVideoConfig(branch=branch, layers=layers)
    generator = torch.Generator().manual_seed(0)
    shapes = named(dreamvideo_model, config)
    weights = {name: random_weight(name, shape, generator) for name, shape in shapes.items()}
    return checkpoint.Checkpoint(checkpoint.DREAMVIDEO, config.to_dict(), weights, {}, "random")


def stock(file: Any, image: Tensor) -> Any:
    """ComfyUI's own ControlNet of a branch's weights, with its picture."""
    import comfy.controlnet

    weights = {name.removeprefix(PREFIX): w for name, w in file.weights.items()}
    return comfy.controlnet.load_controlnet_state_dict(weights).set_cond_hint(image.movedim(-1, 1))


class Bench:
    """The U-Net, its inputs, and the picture."""

    def __init__(self, frames: int, size: int) -> None:
        draw = torch.Generator().manual_seed(4)
        self.model = sd21_model()
        self.single = one_by_one(self.model)
        self.noise = torch.randn(frames, 4, size, size, generator=draw)
        self.image = torch.rand(1, 8 * size, 8 * size, 3, generator=draw)
        self.words, self.empty = ([[torch.randn(1, 77, CONTEXT, generator=draw), {}]] for _ in range(2))

    def run(self, words: list, steps: int = 1) -> tuple[Timed, Tensor]:
        """So many steps of Euler without guidance."""
        from comfy import sample

        timed, latent = Timed(self.model), torch.zeros_like(self.noise)
        euler = (1.0, "euler", "normal", words, words, latent)
        found = sample.sample(timed.model, self.noise, steps, *euler, disable_pbar=True)
        return timed, found

    def retained(self, held: Any) -> list:
        from ...model_patches.comfy_host.dreamvideo.retention import apply_retention

        return apply_retention((self.words,), held, self.image)[0]

    def controlled(self, net: Any) -> list:
        options = {"control": net, "control_apply_to_uncond": False}
        return [[words, given | options] for words, given in self.words]

    def guided(self, positive: list, *, separate: bool) -> float:
        """Seconds of a step of double-condition guidance, its three conditions in one batch or in three calls."""
        from comfy.samplers import sampler_object

        from ...model_patches.comfy_host.dreamvideo.guider import double_condition_guider

        timed = Timed(self.single if separate else self.model)
        guider = double_condition_guider(timed.model, positive, self.empty, text=7.5, image=2.0)
        sigmas, n = torch.tensor([10.0, 0.0]), len(self.noise)
        guider.sample(self.noise, 0 * self.noise, sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
        if timed.rows != ([n] * 3 if separate else [3 * n]):
            raise SystemExit(f"the conditions went through the MODEL in batches of {timed.rows}: too little memory")
        return timed.calls[0]

    def memory(self, held: Any, net: Any) -> dict[str, float]:
        """Megabytes of either network: its weights, and its own tensors while it works."""
        n, module, stocked = len(self.noise), held.patcher.model, net.control_model
        t, context, image = torch.full((n,), 500.0), self.words[0][0].expand(n, -1, -1), self.image.movedim(-1, 1)
        hint = image.expand(n, -1, -1, -1)
        works: dict[str, tuple[Any, Callable[[], Any]]] = {
            "memory_mb": (module, lambda: module(self.noise, t, context, module.encode(image))),
            "memory_controlnet_mb": (stocked, lambda: stocked(x=self.noise, hint=hint, timesteps=t, context=context)),
        }
        return {name: (weights_of(network) + peak_of(work)) / 1e6 for name, (network, work) in works.items()}


def compared(bench: Bench, conditions: dict[str, list], rounds: int) -> tuple[dict[str, float], float]:
    """Least seconds that each adds to the first step of a run and to a later one, and of the U-Net's part of a step;
    and the largest difference of what the first two make of the noise."""
    first: dict[str, list[float]] = {name: [] for name in conditions}
    later, networks = {name: [] for name in conditions}, {name: [] for name in conditions}
    made: list[Tensor] = []
    for i in range(rounds):
        for name, words in conditions.items():
            timed, found = bench.run(words, 2)
            first[name].append(timed.added(0))
            later[name].append(timed.added(1))
            networks[name] += timed.networks
            made += [found] if i == 0 else []
            print(f"{name}: adds {timed.added(0):.2f} s, then {timed.added(1):.2f} s", flush=True)
    figures = {f"first_{name}": min(values) for name, values in first.items()}
    figures |= {f"later_{name}": min(values) for name, values in later.items()}
    figures |= {f"unet_{name}": min(values) for name, values in networks.items()}
    return figures, (made[0] - made[1]).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the least time counts")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="height and width of the latent, a multiple of 8")
    parser.add_argument("--temporal", action="store_true", help="also a branch with frozen temporal layers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start_comfyui(cpu=True)
    from ...model_patches.comfy_host.dreamvideo.retention import hold_branch

    bench, file = Bench(options.frames, options.size), branch_file(temporal=False)
    with torch.inference_mode():
        net, held = stock(file, bench.image), hold_branch(file)
        conditions = {"branch": bench.retained(held), "controlnet": bench.controlled(net), "plain": bench.words}
        if options.temporal:
            conditions["frozen"] = bench.retained(hold_branch(branch_file(temporal=True)))
        bench.run(bench.words)  # warms up
        seconds, error = compared(bench, conditions, options.rounds)
        kinds = {separate: [] for separate in (False, True)}
        for _ in range(max(1, options.rounds - 1)):
            for separate, values in kinds.items():
                values.append(bench.guided(conditions["branch"], separate=separate))
                print(f"guidance, {'three calls' if separate else 'one batch'}: {values[-1]:.2f} s", flush=True)
        megabytes = bench.memory(held, net)
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
