"""Double-condition guidance as a GUIDER of ComfyUI's: text and image each with a scale of its own."""

from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from ...dreamvideo.guidance import DEFAULT_SCALE, IMAGE_FIRST, ORDERS, TEXT_FIRST, Branch, guided, needed, weights
from ..motion import apply as motion
from . import retention as dreamvideo
from .retention import Conditioning

__all__ = [
    "DEFAULT_SCALE",
    "IMAGE_FIRST",
    "ORDERS",
    "TEXT_FIRST",
    "DoubleConditionGuider",
    "double_condition_guider",
]

CFGGuider: Any = comfy.samplers.CFGGuider
# ComfyUI's names of the conditions; what is done to "positive" alone is done to the one with text and image
NAMES: dict[Branch, str] = {"none": "negative", "text": "text", "image": "image", "both": "positive"}


class DoubleConditionGuider(CFGGuider):
    """Eq. 5 on x_0, which is affine in eps. All conditions go to ComfyUI in one call, which makes one batch of them
    when memory allows. Conditions whose weight is 0 are left out. Post-CFG functions see the final prediction.
    """

    def __init__(self, model: comfy.model_patcher.ModelPatcher, text: float, image: float, order: str) -> None:
        super().__init__(model)
        self.scales: tuple[float, float, str] = (text, image, order)
        self.text_roles = [NAMES[b] for b in ("both", "text") if b in weights(text, image, order)]  # with the prompt
        self.set_cfg(text)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, *_args: Any, **_options: Any
    ) -> Tensor:
        """ComfyUI's name; it is x_0 that comes out."""
        options = model_options or {}
        every = options.get("disable_cfg1_optimization", False)  # a sampler or a patch needs all predictions
        branches = list(weights(*self.scales)) if every else needed(*self.scales)
        conds = [self.conds.get(NAMES[branch]) for branch in branches]
        found = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)
        predictions: dict[Branch, Tensor] = dict(zip(branches, found, strict=True))
        x0 = guided(predictions, *self.scales)
        for function in options.get("sampler_post_cfg_function", []):
            x0 = function(self._arguments(x0, predictions, x, timestep, options))
        return x0

    def _arguments(
        self, x0: Tensor, predictions: dict[Branch, Tensor], x: Tensor, sigma: Tensor, options: dict[str, Any]
    ) -> dict[str, Any]:
        """What ComfyUI tells post-CFG functions; a prediction that was left out is zeros there, too."""
        zeros = x0 * 0
        return {
            "denoised": x0,
            "cond": self.conds.get("positive"),
            "uncond": self.conds.get("negative"),
            "cond_scale": self.cfg,
            "model": self.inner_model,
            "uncond_denoised": predictions.get("none", zeros),
            "cond_denoised": predictions.get("both", zeros),
            "sigma": sigma,
            "model_options": options,
            "input": x,
        }


def double_condition_guider(
    model: comfy.model_patcher.ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    *,
    text: float,
    image: float,
    order: str = TEXT_FIRST,
) -> DoubleConditionGuider:
    """The guider of a MODEL. positive: with the image; negative: the null text, with or without the image.

    The null image is put in here. ValueError when positive has no retention branch, the branch is of another base, or
    the MODEL has a CFG function of its own, which this guidance takes the place of.
    """
    control = dreamvideo.retention_of(positive)
    if control is None:
        raise ValueError(
            "double-condition guidance: positive has no image; put it through Apply Image Retention, or use CFGGuider"
        )
    dreamvideo.check_base(model, control.branch.config)
    if "sampler_cfg_function" in model.model_options:
        raise ValueError(
            "double-condition guidance: another node has given this MODEL a guidance of its own (Stepped CFG, "
            "RescaleCFG, ...), which would be left out; remove that node, or use CFGGuider"
        )
    if control.branch.config.inject == "up_blocks" and not motion.is_open(model):
        model = motion.opened(model)
    negative = _controlled(negative, positive)
    guider = DoubleConditionGuider(model, text, image, order)
    conditions: dict[Branch, Conditioning] = {
        "none": dreamvideo.with_null_image(negative, True),
        "text": dreamvideo.with_null_image(positive, True),
        "image": dreamvideo.with_null_image(negative, False),
        "both": dreamvideo.with_null_image(positive, False),
    }
    guider.inner_set_conds({NAMES[branch]: conditions[branch] for branch in weights(text, image, order)})
    return guider


def _controlled(negative: Conditioning, positive: Conditioning) -> Conditioning:
    """The ControlNets of positive for a negative without an image: the branch works for the null text, too."""
    if dreamvideo.retention_of(negative) is not None:
        return negative
    control = next(options["control"] for _words, options in positive if "control" in options)
    return [[words, options | {"control": control}] for words, options in negative]
