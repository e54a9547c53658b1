"""Every system on the pocket model, sampled by ComfyUI in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...model_patches.artv.guidance import Weights
from ..common.pocket_host import ARTV, DECODER, ROOT, VIDRD, PocketHost
from .machine import Setup

HARIVO = ROOT / "pocket" / "harivo.safetensors"
DREAMVIDEO = ROOT / "pocket" / "dreamvideo.safetensors"
TEXT, OTHER_TEXT = "a red star moving up in a green meadow", "a blue ball at rest in the night sky"
PRECISIONS = {"fp32": "fp32_unet", "fp16": "fp16_unet", "bf16": "bf16_unet"}
PIXELS = 64


@contextmanager
def precision(name: str) -> Iterator[None]:
    """ComfyUI's command-line options for the precision of U-Nets that are loaded within the block.

    The autoencoder and the text encoder stay in fp32, so that only the U-Net differs.
    """
    from comfy.cli_args import args

    options = {option: option == PRECISIONS[name] for option in PRECISIONS.values()}
    options |= {"fp32_vae": True, "fp32_text_enc": True}
    before = {option: getattr(args, option) for option in options}
    vars(args).update(options)
    try:
        yield
    finally:
        vars(args).update(before)


def load_host(name: str = "fp32") -> PocketHost:
    with precision(name):
        return PocketHost()


class Systems:
    """name -> latents of one short run, (frames, 4, 16, 16)."""

    def __init__(self, host: PocketHost, setup: Setup) -> None:
        self.host = host
        self.frames, self.steps = (4, 2) if setup.tiny else (16, 10)
        self.runs: dict[str, Callable[[], Tensor]] = {
            "plain": self.plain,
            "harivo": lambda: self.moving(HARIVO),
            "vidrd": lambda: self.moving(VIDRD),
            "dreamvideo": self.dreamvideo,
            "artv": self.artv,
        }

    def plain(self) -> Tensor:
        return self.host.sample(self.host.model, [TEXT, OTHER_TEXT], steps=self.steps)

    def moving(self, path: Any, *, text: str = TEXT, model: Any = None, **options: Any) -> Tensor:
        model = self.host.motion(path, frames=self.frames) if model is None else model
        return self.host.sample(model, [text], frames=self.frames, steps=self.steps, **options)

    @torch.inference_mode()
    def dreamvideo(self) -> Tensor:
        from comfy.samplers import KSampler, sampler_object

        from ...model_patches.comfy_host.dreamvideo.guider import double_condition_guider
        from ...model_patches.comfy_host.dreamvideo.retention import apply_retention, load_branch

        model = self.host.motion(DREAMVIDEO, frames=self.frames)
        ramp = torch.linspace(0, 1, PIXELS)
        rows, columns = ramp[:, None].expand(-1, PIXELS), ramp.expand(PIXELS, -1)
        image = torch.stack([rows, columns, 1 - rows], dim=-1)[None]
        positive = apply_retention((self.host.condition([TEXT]),), load_branch(DREAMVIDEO), image)
        guider = double_condition_guider(model, positive[0], self.host.condition([""]), text=7.5, image=2.0)
        noise = torch.randn(self.frames, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        sigmas = KSampler(model, self.steps, model.load_device, "euler", "normal", 1.0).sigmas
        latent = torch.zeros_like(noise)
        return guider.sample(noise, latent, sampler_object("euler"), sigmas, disable_pbar=True, seed=0)

    @torch.inference_mode()
    def artv(self) -> Tensor:
        from ...model_patches.comfy_host.artv.files import load_artv
        from ...model_patches.comfy_host.video.autoregressive import Rollout

        positive, negative = self.host.condition([TEXT]), self.host.condition([""])
        settings: dict[str, Any] = {"scheduler": "normal", "steps": self.steps, "seed": 0, "size": (PIXELS, PIXELS)}
        settings |= {"positive": positive, "negative": negative, "sampler": "euler", "weights": Weights(), "level": 200}
        rollout = Rollout(self.host.model, load_artv(ARTV), self.host.vae, **settings)
        state, frames = None, []
        for frame in range(3):
            latents, state = rollout.sample(frame, 0, state, lambda _share: None)
            frames.append(latents)
        return torch.cat(frames)


def decoder(host: PocketHost, frames: int = 0) -> Any:
    """The pocket's VAE with the temporal decoder."""
    from ...model_patches.comfy_host.vidrd.decoder import TemporalVAE, load_decoder

    return TemporalVAE(host.vae, load_decoder(DECODER), frames)
