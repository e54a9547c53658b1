"""ART-V around a diffusers U-Net: one frame from the two previous frames and an anchor, for training and previews.

The U-Net's modules, keys and weights are unchanged; everything is added through torch hooks. Each sample of a batch has
its own conditions, some of which may be dropped.

Shapes: n samples; c, h, w of the latents; L text tokens d wide; T tokens of the anchor k wide.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ..artv.conditions import Conditions, conditions
from ..artv.masked import masked_noise, noise_from_velocity, static_noise
from ..artv.model import ArtvModel
from ..artv.noise import level_shift
from ..artv.places import sites, stages
from ..core.levels import alpha_bars
from ..core.slots import Slot
from .motion import address
from .sizes import check_sizes

PREDICTIONS = ("eps", "v")


@dataclass
class _Call:
    """One forward of the U-Net."""

    conditions: Conditions
    features: list[Tensor]
    t: Tensor
    calls: int = 0


class ArtvUNet(nn.Module):
    """eps of Eq. 7 from the dynamic network, which is `unet` with the model's parts attached, and the mask network.

    alpha_bars: of the noise levels, (levels,); Stable Diffusion's by default. prediction: what `unet` predicts, "eps"
    or "v". The U-Net called directly is still the image model; `remove()` removes the hooks. With gradient
    checkpointing, the backward pass of each forward must run before the next forward, because it calls layers again.

    ValueError, naming both sizes, when the model was built for another U-Net.
    """

    alpha_bars: Tensor

    def __init__(
        self,
        unet: UNet2DConditionModel,
        model: ArtvModel,
        *,
        alpha_bars: Tensor | None = None,
        prediction: str = "eps",
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"ART-V: the U-Net predicts {prediction!r}; choose one of {', '.join(PREDICTIONS)}")
        check_base(unet, model)
        self.unet, self.model, self.prediction = unet, model, prediction
        self.register_buffer("alpha_bars", _levels(alpha_bars), persistent=False)
        self._next: _Call | None = None
        self._call: _Call | None = None  # of the U-Net's last forward; None if it was called directly
        ends = {slot: i for i, slot in enumerate(stages(model.config))}
        self._slots = list(dict.fromkeys([*sites(model.config), *ends]))
        embedding: Any = unet.time_embedding
        self._hooks = [unet.register_forward_pre_hook(self._begin), embedding.register_forward_hook(self._embedded)]
        for slot in self._slots:
            self._hooks.append(address(unet, slot).register_forward_hook(self._at(slot, ends.get(slot))))

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._call = None

    def forward(
        self,
        y_t: Tensor,  # (n, c, h, w), noisy latents in VP coordinates
        t: Tensor,  # (n,), time steps
        context: Tensor,  # (n, L, d)
        references: Tensor,  # (n, 2, c, h, w), y^{i-1} and y^{i-2}, clean
        anchor: Tensor,  # (n, c, h, w), clean, or (n, T, k) tokens if the model takes CLIP tokens
        noise: Tensor,  # (n, 3, c, h, w), unit noise that augments references and anchor
        level: Tensor,  # (n,), time step of that noise
        *,
        no_references: Tensor | None = None,  # (n,) bool, samples without references
        no_anchor: Tensor | None = None,  # (n,) bool, samples without an anchor
        masked: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """eps (n, c, h, w) of Eq. 7, m (n, 1, h, w), and eps of the dynamic network alone (n, c, h, w).

        To drop the text, pass the embedding of the empty prompt. masked: run the mask network only for this number of
        leading samples, None for all; m = 0 for the others. RuntimeError when the U-Net does not run the layers to
        which the parts are attached.
        """
        conds = conditions(
            self.model.config,
            references,
            anchor,
            noise,
            level,
            self.alpha_bars,
            no_references=_all_false(level) if no_references is None else no_references,
            no_anchor=_all_false(level) if no_anchor is None else no_anchor,
        )
        eps_dynamic = self._dynamic(y_t, t, context, conds)
        n = len(y_t) if masked is None else masked
        if not n:
            return eps_dynamic, torch.zeros_like(eps_dynamic[:, :1]), eps_dynamic
        network = self.model.mask
        m = network(
            y_t[:n], t[:n], context[:n], network.reference(conds.references[:n]), conds.tokens[:n], conds.level[:n]
        )
        m = torch.where(conds.blank[:n].view(-1, 1, 1, 1), torch.zeros_like(m), m)
        static = static_noise(y_t[:n], conds.static[:n], self._abar(t[:n], y_t), self.model.config.static)
        eps = torch.cat([masked_noise(eps_dynamic[:n], static, m), eps_dynamic[n:]])
        return eps, torch.cat([m, torch.zeros_like(eps_dynamic[n:, :1])]), eps_dynamic

    def _dynamic(self, y_t: Tensor, t: Tensor, context: Tensor, conds: Conditions) -> Tensor:
        call = self._next = _Call(conds, self.model.reference(conds.references), t)
        output = self.unet(y_t, t, context).sample
        if call.calls < len(self._slots):
            raise RuntimeError(
                f"ART-V: only {call.calls} of {len(self._slots)} layers with parts of the model were called in this "
                "forward; the U-Net must run all layers to which parts are attached"
            )
        return output if self.prediction == "eps" else noise_from_velocity(output, y_t, self._abar(t, y_t))

    def _abar(self, t: Tensor, y_t: Tensor) -> Tensor:
        return self.alpha_bars[t.long()].to(y_t).view(-1, 1, 1, 1)

    def _begin(self, _unet: nn.Module, _args: tuple) -> None:
        self._call, self._next = self._next, None

    def _embedded(self, embedding: Any, _args: tuple, emb: Tensor) -> Tensor | None:
        """The embedding of the time step plus that of the augmentation level."""
        call = self._call
        if call is None:
            return None
        channels = embedding.linear_1.in_features
        form = self.model.config.level_embedding
        shift = level_shift(lambda pe: embedding.forward(pe.to(emb)), channels, call.t, call.conditions.level, form)
        return None if shift is None else emb + shift

    def _at(self, slot: Slot, stage: int | None) -> Any:
        """After a layer: the anchor block, then the adapter's feature, if the slot has them."""

        def hook(_layer: nn.Module, _args: tuple, output: Any) -> Any:
            call = self._call
            if call is None:
                return None
            call.calls += 1
            x = (
                output[0] if isinstance(output, tuple) else output
            )  # a Transformer2DModel inside a block returns a tuple
            x = self.model.anchors.change(slot, x, call.conditions.tokens)
            x = x if stage is None else x + call.features[stage].to(x)
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return hook


def _levels(values: Tensor | None) -> Tensor:
    return (alpha_bars() if values is None else values).float()


def _all_false(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.bool, device=like.device)


def check_base(unet: UNet2DConditionModel, model: ArtvModel) -> None:
    """ValueError unless the model was built for a U-Net with these blocks, transformers, text and latents."""
    config = model.config
    expected = {
        "block channels": config.block_channels,
        "layers per block": config.layers_per_block,
        "attention": config.attention,
        "text width": config.context_dim,
        "latent channels": config.latent_channels,
    }
    check_sizes(unet, expected, "ART-V model: it was built")
