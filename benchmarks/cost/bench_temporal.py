"""The cost of a motion model: a forward of SD 1.5's U-Net, random weights, 16 frames of latent 16x16, one thread, fp32.

Networks with the same weights run in turn: the plain U-Net in ComfyUI, the same with our motion model (v2, which has a
middle module), ours with torch's own linear layers, diffusers' UNetMotionModel and, where --evolved names its folder,
AnimateDiff-Evolved. Keys: `kernels` (the library of our linear layers on this processor), `NETWORK_over_plain` and
`ours_added_over_NETWORK` (the time that ours adds over the time that another adds; both are medians over the rounds of
ratios within a round; CPU time of the process, as other processes share the cores), `max_abs_error` (largest difference
of our output from diffusers', with diffusers' rule for the GroupNorm), `max_abs_error_evolved` (from
AnimateDiff-Evolved's, which has our rule), and the least seconds of each. Needs 10 GB.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model_patches import layouts
from ...model_patches.checkpoint import Checkpoint
from ...model_patches.core.config import MotionConfig
from ...model_patches.core.linear import KERNELS
from ...model_patches.core.temporal import MotionModel
from ...model_patches.ldm_names import rename, unet_prefixes
from ...model_patches.systems import MOTION
from ..common.evolved import evolved_motion
from ..common.pocket_host import start_comfyui
from ..common.report import finish

CHANNELS, HEADS, CONTEXT = (320, 640, 1280, 1280), 8, 768
ATTENTION = (True, True, True, False)
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Set the weights of a module to those of `random_weight`."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in module.named_parameters():
        weight.data = random_weight(name, weight.shape, generator)
    return module


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """1 for norms, 0 for biases, otherwise normal with a variance that keeps activations near 1."""
    if len(shape) < 2:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
    return torch.randn(shape, generator=generator) * (0.6 / shape[1:].numel() ** 0.5)


def comfyui_model():
    """A MODEL with the sizes of SD 1.5."""
    from comfy import model_patcher, supported_models

    family = supported_models.SD15(dict(UNET))
    family.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = family.get_model({}, "", device=cpu)
    randomise(model.diffusion_model)
    return model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def motion_file(group_norm: str, weights: dict[str, Tensor]) -> Checkpoint:
    config = MotionConfig(block_channels=CHANNELS, mid_block=True, heads=HEADS, group_norm=group_norm)
    return Checkpoint(MOTION, config.to_dict(), weights, {}, "random")


def diffusers_unet(
    base: dict[str, Tensor],
    motion: dict[str, Tensor],
    channels: tuple[int, ...] = CHANNELS,
    context: int = CONTEXT,
) -> Any:
    """diffusers' own motion U-Net with the same tensors."""
    from diffusers.models.unets.unet_motion_model import UNetMotionModel

    with torch.device("meta"):
        unet = UNetMotionModel(
            block_out_channels=channels,
            cross_attention_dim=context,
            num_attention_heads=HEADS,
            motion_num_attention_heads=HEADS,
            use_motion_mid_block=True,
        )
    weights = rename(base, unet_prefixes(4, 2, ATTENTION)) | layouts.to_diffusers(motion)
    unet.load_state_dict(weights, strict=True, assign=True)
    return unet.eval()


class TimedModel:
    """A MODEL that times the calls of its network and stores the last input and output."""

    def __init__(self, model, patch: Callable = lambda model: model) -> None:
        from comfy.patcher_extension import WrappersMP

        self.seconds: list[float] = []
        self.input: tuple[Tensor, ...] = ()
        self.output = torch.empty(0)
        clone = model.clone()
        # wrappers run in the order in which they were added: this one encloses everything that the patch adds
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", self.time)
        self.model = patch(clone)
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench", self.keep)

    def time(self, executor, *args, **kwargs) -> Tensor:
        start_time = time.process_time()
        result = executor(*args, **kwargs)
        self.seconds.append(time.process_time() - start_time)
        return result

    def keep(self, executor, x: Tensor, timesteps: Tensor, context: Tensor, *args, **kwargs) -> Tensor:
        self.input = (x, timesteps, context)
        self.output = executor(x, timesteps, context, *args, **kwargs)
        return self.output

    def run(self, noise: Tensor, conditioning: list) -> None:
        """Run one step of ComfyUI's sampler without guidance, that is, one call of the network."""
        from comfy import sample

        latent = torch.zeros_like(noise)
        sampling = (1, 1.0, "euler", "normal", conditioning, conditioning, latent)
        sample.sample(self.model, noise, *sampling, disable_pbar=True, seed=0)


class DiffusersModel:
    """diffusers' motion U-Net, with the interface of TimedModel; `example` provides its inputs."""

    def __init__(self, unet: Any, example: TimedModel, frames: int) -> None:
        self.unet, self.example, self.frames = unet, example, frames
        self.seconds: list[float] = []
        self.output = torch.empty(0)

    def run(self, _noise: Tensor, _conditioning: list) -> None:
        x, timesteps, context = self.example.input
        clip = x.unflatten(0, (-1, self.frames)).transpose(1, 2)  # (b, c, f, h, w)
        start_time = time.process_time()
        output = self.unet(clip, timesteps[0], context, return_dict=False)[0]
        self.seconds.append(time.process_time() - start_time)
        self.output = output.transpose(1, 2).flatten(0, 1)


def with_torch_linear(motion: Any) -> Any:
    """The loaded motion model, whose linear layers use torch's own product."""
    for layer in motion.patcher.model.modules():
        if hasattr(layer, "product"):
            layer.product = F.linear
    return motion


def summary(networks: dict[str, Any]) -> dict[str, float]:
    """Ratios to the plain network and of the added times, from the rounds."""
    seconds = {name: network.seconds[-len(networks["plain"].seconds) :] for name, network in networks.items()}
    rounds = [dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True)]
    over_plain = {f"{name}_over_plain": median(r[name] / r["plain"] for r in rounds) for name in networks}
    added = {
        f"ours_added_over_{name}": median((r["ours"] - r["plain"]) / (r[name] - r["plain"]) for r in rounds)
        for name in networks
        if name not in ("plain", "ours")
    }
    del over_plain["plain_over_plain"]
    return over_plain | added | {f"seconds_{name}": min(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="forwards of each network, in turn")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=16, help="height and width of the latent")
    parser.add_argument("--evolved", type=Path, metavar="FOLDER", help="a copy of ComfyUI-AnimateDiff-Evolved")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start_comfyui()
    from ...model_patches.comfy_host.motion.apply import apply_motion
    from ...model_patches.comfy_host.motion.files import hold

    base = comfyui_model()
    motion = MotionModel(MotionConfig(block_channels=CHANNELS, mid_block=True, heads=HEADS))
    weights = randomise(motion).state_dict()
    frames, noise = options.frames, torch.randn(options.frames, 4, options.size, options.size)
    conditioning = [[torch.randn(1, 77, CONTEXT), {}]]

    def moving(group_norm: str = "per_frame", change: Callable = lambda motion: motion) -> TimedModel:
        motion_model = change(hold(motion_file(group_norm, weights)))
        return TimedModel(base, lambda model: apply_motion(model, motion_model, frames=frames))

    same_rule = moving("per_clip")
    unet = diffusers_unet(base.model.diffusion_model.state_dict(), weights)
    networks: dict[str, Any] = {
        "plain": TimedModel(base),
        "ours": moving(),
        "ours_torch_linear": moving(change=with_torch_linear),
        "diffusers": DiffusersModel(unet, same_rule, frames),
    }
    if options.evolved:
        networks["evolved"] = TimedModel(base, lambda model: evolved_motion(options.evolved, model, weights))
    with torch.inference_mode():
        same_rule.run(noise, conditioning)  # also warms up
        for _ in range(options.rounds):
            for network in networks.values():
                network.run(noise, conditioning)
            print(", ".join(f"{name} {network.seconds[-1]:.2f} s" for name, network in networks.items()), flush=True)
    figures: dict[str, Any] = {"kernels": KERNELS, **summary(networks)}
    output = networks["diffusers"].output
    figures["max_abs_error"] = (same_rule.output - output).abs().max().item()
    if options.evolved:
        difference = networks["ours"].output - networks["evolved"].output
        figures["max_abs_error_evolved"] = difference.abs().max().item()
    print(f"our linear layers use {KERNELS}\n{'network':<20}{'seconds':>9}{'over plain':>12}")
    for name in networks:
        print(f"{name:<20}{figures[f'seconds_{name}']:>9.2f}{figures.get(f'{name}_over_plain', 1.0):>12.3f}")
    print(f"largest output {output.abs().max().item():.2f}, largest difference {figures['max_abs_error']:.1e}")
    finish("temporal", figures)


if __name__ == "__main__":
    main()
