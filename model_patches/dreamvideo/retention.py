"""The image-retention branch (arXiv 2312.03018, section 4.2, figure 2 and Eq. 3).

    z_r = conv_d(z_t) + conv_s(I), where conv_s(I) of one image I is the same for all frames
    r_1, ..., r_L = zero convolutions of the features of the down and middle blocks on z_r

The residuals r are added to the primary U-Net: to its skips and its middle block ("skips", as in a ControlNet), or to
the outputs of its up blocks ("up_blocks", Eq. 3: z = F_j(z, p) + R_i(z, p, z_s), j = L - i + 1). Every zero convolution
is initialised to zero, so a new branch adds nothing.

Weights have the names of diffusers' ControlNetModel; with "skips" and without temporal layers they are identical.

Shapes: b clips, f frames, n = b f images, c channels, h height, w width of the latents; images are s h x s w pixels
with s = config.downscale (8 for Stable Diffusion).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.control import ControlBranch, HintEncoder, Residuals
from ..core.temporal import Attention, sdpa
from .config import RetentionConfig


class RetentionBranch(ControlBranch):
    """The branch. `temporal`: frozen temporal layers with modules_by_slot(), if the config has such layers."""

    def __init__(
        self,
        config: RetentionConfig,
        *,
        temporal: nn.Module | None = None,
        ops: Any = nn,
        attention: Attention = sdpa,
    ) -> None:
        if (temporal is not None) != (config.temporal == "frozen"):
            raise ValueError(
                f"retention branch: temporal is {config.temporal!r} in its config, but "
                f"{'no' if temporal is None else 'some'} temporal layers were passed; pass them exactly for 'frozen'"
            )
        frozen = temporal if temporal is None else temporal.requires_grad_(False).eval()
        first = config.block_channels[0]

        def conv_s(ops: Any) -> HintEncoder:
            return HintEncoder(config.hint_channels, first, ops)

        super().__init__(config, conv_s, temporal=frozen, ops=ops, attention=attention)
        self.config = config

    def encode(self, image: Tensor) -> Tensor:
        """conv_s(I). image: (1 or n, 3, s h, s w), values from 0 to 1 -> (1 or n, c, h, w)."""
        return self.controlnet_cond_embedding(image if self.config.image_range == "unit" else 2 * image - 1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, z_s: Tensor, frames: int = 1) -> Residuals:
        """x: z_t, (n, 4, h, w); t: timesteps (n,); context: (n, L, d); z_s: `encode` of one image for all n, or of n
        images. frames: of one clip, for temporal layers. ValueError when the size or number of z_s does not match."""
        if z_s.shape[-2:] != x.shape[-2:] or len(z_s) not in (1, len(x)):
            raise ValueError(
                f"retention branch: the image features are {tuple(z_s.shape)}, the latents {tuple(x.shape)}; give one "
                f"image, or one for each latent, with {self.config.downscale} times the height and width of the latents"
            )
        return self.residuals(self.conv_in(x) + z_s, t, context, frames)

    def train(self, mode: bool = True) -> "RetentionBranch":
        """As for any module, but the frozen temporal layers stay in evaluation mode, without dropout."""
        super().train(mode)
        if self.temporal is not None:
            self.temporal.eval()
        return self

    def trained(self) -> list[nn.Parameter]:
        """The trainable weights: all except the frozen temporal layers."""
        return [p for name, p in self.named_parameters() if not name.startswith("temporal.")]

    def start_from(self, unet: Mapping[str, Tensor]) -> None:
        """Copy a U-Net's down and middle blocks, conv_in and time embedding, in diffusers' names (section 4.2).

        conv_s, the zero convolutions and temporal layers stay. ValueError when a weight is missing or its size differs.
        """
        parameters = {k: v for k, v in self.named_parameters() if not k.startswith(("controlnet_", "temporal."))}
        mismatches = [k for k, v in parameters.items() if k not in unet or unet[k].shape != v.shape]
        if mismatches:
            shape = tuple(unet[mismatches[0]].shape) if mismatches[0] in unet else "missing"
            raise ValueError(
                f"retention branch: {mismatches[0]} is {tuple(parameters[mismatches[0]].shape)} in the branch and "
                f"{shape} in the U-Net; build the branch with the sizes of this U-Net"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(unet[name])
