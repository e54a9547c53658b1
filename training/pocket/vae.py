"""Stage 1: the autoencoder of the pocket model (diffusers' AutoencoderKL, f = 4, four latent channels).

It is convolutional, so it can be trained on crops around the sprite, which cost a quarter of whole images and contain
more edges. The last part of the run uses whole images, so that it also learns the borders of an image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ...model_patches.diffusers_host.pocket import new_vae
from ...model_patches.pocket import SCALE, PocketConfig
from ..data.worlds import SPRITES, World
from ..engine.loop import sample_generator
from ..engine.task import Task


class VaeTask(Task):
    """world: what is drawn; anywhere: share of the crops that lie anywhere, for the sake of the ground."""

    def __init__(
        self, seed: int = 0, *, crop: int = 32, kl: float = 1e-4, world: World = SPRITES, anywhere: float = 0.0
    ) -> None:
        super().__init__()
        self.vae, self.seed, self.crop, self.kl = new_vae(PocketConfig()), seed, crop, kl
        self.world, self.anywhere = world, anywhere

    def identity(self) -> dict[str, str]:
        return {"data.world": self.world.NAME, "vae.crop": str(self.crop), "vae.anywhere": str(self.anywhere)}

    def picture(self, k: int) -> Tensor:
        """(3, h, w) in -1..1: a frame of clip `k`, cropped around its subject."""
        g = sample_generator(self.seed, k)
        clip = self.world.clip(self.seed, k)
        t = torch.rand((), generator=g).item()
        frame = self.world.render(clip, [t])[0] * 2 - 1
        if self.crop >= frame.shape[-1]:
            return frame
        offset = (torch.rand(2, generator=g) - 0.5) * self.crop
        centre = torch.tensor(self.world.position(clip, t))
        if torch.rand((), generator=sample_generator(self.seed, k, 2)) < self.anywhere:
            centre = torch.rand(2, generator=sample_generator(self.seed, k, 3))
        x, y = (centre * 64 + offset - self.crop / 2).round().int()
        last = frame.shape[-1] - self.crop
        x, y = int(x.clamp(0, last)) // 4 * 4, int(y.clamp(0, last)) // 4 * 4  # whole latents
        return frame[:, y : y + self.crop, x : x + self.crop]

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        device = next(self.vae.parameters()).device
        x = torch.stack([self.picture(k) for k in samples]).to(device)
        moments: Any = self.vae.encode(x, return_dict=False)[0]
        shape = moments.mean.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=sample_generator(self.seed, k, 1)) for k in samples])
        z: Any = moments.mean + moments.std * noise.to(device)
        y = self.vae.decode(z, return_dict=False)[0]
        loss = reconstruction(y, x) + self.kl * moments.kl().mean() / moments.mean[0].numel()
        psnr = -10 * ((y.clamp(-1, 1) - x) / 2).square().mean().log10()
        return {"loss": loss, "psnr": psnr.detach()}


def reconstruction(y: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 MSE on colours, L1 on differences between neighbouring pixels (edges) and between channels (hue)."""
    edges = sum((F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (-1, -2)), torch.zeros((), device=x.device))
    hue = F.l1_loss(y.diff(dim=1), x.diff(dim=1))
    return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + edges + 0.5 * hue


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold the mean and the standard deviation into the 1x1 convolutions, in place.

    Afterwards, latents times 0.18215 have mean 0 and standard deviation 1 in each channel.
    """
    z = torch.cat([vae.encode(p, return_dict=False)[0].mean for p in pictures.split(64)])
    mean = z.mean((0, 2, 3))
    gain = 1 / (SCALE * z.std((0, 2, 3)))
    n = len(mean)
    quant: Any = vae.quant_conv
    post_quant: Any = vae.post_quant_conv
    quant.weight[:n] *= gain.view(-1, 1, 1, 1)
    quant.bias[:n] = (quant.bias[:n] - mean) * gain
    quant.bias[n:] += 2 * gain.log()  # the log-variances scale with the square of the gain
    post_quant.bias += post_quant.weight.flatten(1) @ mean
    post_quant.weight /= gain.view(1, -1, 1, 1)
