"""The cost of a motion model: a forward of SD 1.5's U-Net, random weights, 16 frames of latent 16x16, one thread, fp32.

Three networks with the same weights run in turn: the plain U-Net in ComfyUI, the same with our motion model (v2, which
has a middle module), and diffusers' UNetMotionModel. Keys: `ours_over_plain`, `ours_over_diffusers` (ratios of seconds,
the least of all rounds; CPU time of the process, as other processes share the cores), `max_abs_error` (largest
difference of our output from diffusers', with diffusers' rule for the GroupNorm), and the three times. Needs 10 GB.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ...model_patches import layouts
from ...model_patches.checkpoint import Checkpoint
from ...model_patches.core.config import MotionConfig
from ...model_patches.core.temporal import MotionModel
from ...model_patches.ldm_names import rename, unet_prefixes
from ...model_patches.systems import MOTION
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


def diffusers_unet(base: dict[str, Tensor], motion: dict[str, Tensor]):
    """diffusers' own motion U-Net with the same tensors."""
    from diffusers.models.unets.unet_motion_model import UNetMotionModel

    with torch.device("meta"):
        unet = UNetMotionModel(
            block_out_channels=CHANNELS,
            cross_attention_dim=CONTEXT,
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
        sample.sample(
            self.model, noise, 1, 1.0, "euler", "normal", conditioning, conditioning, latent, disable_pbar=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="forwards of each network; the shortest time counts")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=16, help="height and width of the latent")
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

    def moving(group_norm: str) -> TimedModel:
        motion_model = hold(motion_file(group_norm, weights))
        return TimedModel(base, lambda model: apply_motion(model, motion_model, frames=frames))

    plain, stillmotion, same_rule = TimedModel(base), moving("per_frame"), moving("per_clip")
    diffusers_model = diffusers_unet(base.model.diffusion_model.state_dict(), weights)
    seconds: list[float] = []
    output = torch.empty(0)
    with torch.inference_mode():
        same_rule.run(noise, conditioning)  # also warms up
        x, timesteps, context = same_rule.input
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)  # (b, c, f, h, w)
        for _ in range(options.rounds):
            plain.run(noise, conditioning)
            stillmotion.run(noise, conditioning)
            start_time = time.process_time()
            output = diffusers_model(clip, timesteps[0], context, return_dict=False)[0]
            seconds.append(time.process_time() - start_time)
            print(
                f"plain {plain.seconds[-1]:.2f} s, ours {stillmotion.seconds[-1]:.2f} s, diffusers {seconds[-1]:.2f} s"
            )
    error = (same_rule.output - output.transpose(1, 2).flatten(0, 1)).abs().max().item()
    fastest = {"plain": min(plain.seconds), "ours": min(stillmotion.seconds), "diffusers": min(seconds)}
    print(f"{'network':<12}{'seconds':>9}{'over plain':>12}")
    for name, value in fastest.items():
        print(f"{name:<12}{value:>9.2f}{value / fastest['plain']:>12.3f}")
    print(f"largest output {output.abs().max().item():.2f}, largest difference {error:.1e}")
    figures = {
        "ours_over_plain": fastest["ours"] / fastest["plain"],
        "ours_over_diffusers": fastest["ours"] / fastest["diffusers"],
        "max_abs_error": error,
    }
    finish("temporal", figures | {f"seconds_{name}": value for name, value in fastest.items()})


if __name__ == "__main__":
    main()
