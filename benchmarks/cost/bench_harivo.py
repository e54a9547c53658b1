"""The cost of each part of HARIVO in a forward of SD 1.5's U-Net: random weights, 16 frames, one thread, fp32, ComfyUI.

The plain U-Net, the one with temporal layers, and the one with all parts run in turn. The mapping network and the token
generator are timed separately on that U-Net's inputs, and the cross-attentions within the U-Net with and without the
longer context, because these costs are too small to appear as a difference of whole forwards. The generator counts in
full, although it runs once per prompt and not in each forward. All times are the least of the rounds, in CPU time of
the process.

Keys: `overhead_mapping_tokens` (seconds that both add, over the seconds of the U-Net with temporal layers),
`overhead_each` (the same for each part; for the temporal layers, over the plain U-Net), `memory_each_mb` (weights and
the peak of the part's own tensors, in 10^6 bytes), `all_over_temporal` (ratio of whole forwards). Needs 10 GB.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...model_patches.checkpoint import Checkpoint
from ...model_patches.core.config import MotionConfig
from ...model_patches.core.slots import slots
from ...model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from ...model_patches.harivo.model import HarivoModel
from ...model_patches.systems import HARIVO
from ..common.pocket_host import start_comfyui
from ..common.report import finish
from .bench_temporal import CHANNELS, CONTEXT, HEADS, TimedModel, comfyui_model, randomise

MOTION = MotionConfig(block_channels=CHANNELS, mid_block=True, heads=HEADS)
CONFIG = HarivoConfig(motion=MOTION, mapping=MappingConfig(), tokens=TokenConfig(context_dim=CONTEXT))
ONLY_TEMPORAL: dict[str, Any] = {"mapping": 0.0, "tokens": 0.0}


class Alive(TorchDispatchMode):
    """Measures the peak size in bytes of the tensors that are created inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in inputs:
                storage = leaf.untyped_storage()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._storages = {key: value for key, value in self._storages.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return result


def peak_of(work: Callable[[], Any]) -> int:
    with Alive() as alive:
        work()
    return alive.peak


def least_seconds(work: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start_time = time.process_time()
        work()
        seconds.append(time.process_time() - start_time)
    return min(seconds)


class CrossAttentions:
    """Measures the seconds that a U-Net spends in its cross-attentions."""

    def __init__(self, unet: nn.Module) -> None:
        self.start_time = self.seconds = 0.0
        module: Any
        for module in unet.modules():
            if hasattr(module, "attn2"):
                module.attn2.register_forward_pre_hook(self._start)
                module.attn2.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self.start_time = time.process_time()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.process_time() - self.start_time

    def of(self, work: Callable[[], Any]) -> float:
        self.seconds = 0.0
        work()
        return self.seconds


def weights_of(module: nn.Module) -> int:
    return sum(w.nbytes for w in module.state_dict().values())


def memory(model: Any, frames: int, size: int, context: Tensor) -> dict[str, float]:
    """Megabytes of each part: its weights, and the peak of its own tensors in a forward."""
    depth = len(CHANNELS) - 1

    def temporal() -> int:
        peaks = []
        for slot, channels in slots(MOTION).items():
            level = {"down": slot.block, "mid": depth, "up": depth - slot.block}[slot.part]
            x = torch.randn(frames, channels, size >> level, size >> level)
            peaks.append(peak_of(lambda x=x, slot=slot: model.temporal.module(slot).update(x, frames)))
        return max(peaks)

    x = torch.randn(frames, 4, size, size)
    peaks = {
        "temporal": temporal(),
        "mapping": peak_of(lambda: model.mapping(x, frames)),
        "tokens": peak_of(lambda: model.tokens(context, frames)) + frames * 3 * context.nbytes // context.shape[1],
    }
    return {name: (weights_of(getattr(model, name)) + peak) / 1e6 for name, peak in peaks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="forwards of each network; the shortest time counts")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=16, help="height and width of the latent, a multiple of 8")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start_comfyui()
    from ...model_patches.comfy_host.motion.apply import apply_motion
    from ...model_patches.comfy_host.motion.files import hold

    base, frames = comfyui_model(), options.frames
    weights = randomise(HarivoModel(CONFIG)).state_dict()
    motion_model = hold(Checkpoint(HARIVO, CONFIG.to_dict(), weights, {}, "random"))
    noise = torch.randn(frames, 4, options.size, options.size)
    conditioning = [[torch.randn(1, 77, CONTEXT), {}]]
    plain = TimedModel(base)
    temporal = TimedModel(base, lambda model: apply_motion(model, motion_model, frames=frames, **ONLY_TEMPORAL))
    all_parts = TimedModel(base, lambda model: apply_motion(model, motion_model, frames=frames))
    attentions = CrossAttentions(base.model.diffusion_model)
    short, long = [], []
    with torch.inference_mode():
        temporal.run(noise, conditioning)  # warm-up
        temporal.seconds.clear()
        for _ in range(options.rounds):
            plain.run(noise, conditioning)
            short.append(attentions.of(lambda: temporal.run(noise, conditioning)))
            long.append(attentions.of(lambda: all_parts.run(noise, conditioning)))
            latest = [network.seconds[-1] for network in (plain, temporal, all_parts)]
            print("plain {:.2f} s, temporal {:.2f} s, all {:.2f} s".format(*latest))
        x, _, context = temporal.input
        model: Any = motion_model.patcher.model
        repeats = 3 * options.rounds
        mapping = least_seconds(lambda: model.mapping(x, frames), repeats)
        generator = least_seconds(lambda: model.tokens(context[:1], frames), repeats)
        megabytes = memory(model, frames, options.size, context[:1])
    seconds_temporal, seconds_all = min(temporal.seconds), min(all_parts.seconds)
    longer = max(0.0, min(long) - min(short))
    overheads = {
        "temporal": seconds_temporal / min(plain.seconds) - 1,
        "mapping": mapping / seconds_temporal,
        "tokens": (generator + longer) / seconds_temporal,
    }
    print(f"{'part':<10}{'overhead':>10}{'MB':>9}")
    for name, share in overheads.items():
        print(f"{name:<10}{share:>10.2%}{megabytes[name]:>9.1f}")
    print(
        f"mapping {mapping:.3f} s, tokens {generator:.3f} s, longer context {longer:.3f} s of {seconds_temporal:.2f} s"
    )
    figures = {
        "overhead_mapping_tokens": overheads["mapping"] + overheads["tokens"],
        "overhead_each": overheads,
        "memory_each_mb": megabytes,
        "all_over_temporal": seconds_all / seconds_temporal,
    }
    finish(
        "harivo",
        figures
        | {"seconds_plain": min(plain.seconds), "seconds_temporal": seconds_temporal, "seconds_all": seconds_all},
    )


if __name__ == "__main__":
    main()
