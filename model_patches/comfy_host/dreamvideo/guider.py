"""Double-condition guidance as a ComfyUI GUIDER: text and image have separate scales."""

from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from ...dreamvideo.guidance import DEFAULT_SCALE, IMAGE_FIRST, ORDERS, TEXT_FIRST, Branch, guided, needed, weights
from ..base.equality import first_equal
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
# names of the conditions in ComfyUI; "positive" is the one with text and image
NAMES: dict[Branch, str] = {"none": "negative", "text": "text", "image": "image", "both": "positive"}


class DoubleConditionGuider(CFGGuider):
    """Eq. 5 on x_0, which is affine in eps. All conditions are passed to ComfyUI in one call, which batches them if
    memory allows. Conditions with weight 0 are not evaluated, equal ones once. Post-CFG functions get the final
    prediction.
    """

    def __init__(self, model: comfy.model_patcher.ModelPatcher, text: float, image: float, order: str) -> None:
        super().__init__(model)
        self.scales: tuple[float, float, str] = (text, image, order)
        self.text_roles = [NAMES[b] for b in ("both", "text") if b in weights(text, image, order)]  # with the prompt
        self.set_cfg(text)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, *_args: Any, **_options: Any
    ) -> Tensor:
        """Called by ComfyUI. Despite its name, it returns x_0."""
        options = model_options or {}
        needs_all = options.get("disable_cfg1_optimization", False)  # a sampler or patch needs all predictions
        branches = list(weights(*self.scales)) if needs_all else needed(*self.scales)
        predictions = self._predictions(branches, x, timestep, options)
        x0 = guided(predictions, *self.scales)
        for function in options.get("sampler_post_cfg_function", []):
            x0 = function(self._arguments(x0, predictions, x, timestep, options))
        return x0

    def _predictions(
        self, branches: list[Branch], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> dict[Branch, Tensor]:
        """The prediction of each branch. Equal conditions are computed once: without a prompt, the null text is it."""
        conds = [self.conds.get(NAMES[branch]) for branch in branches]
        places = first_equal(conds)
        distinct = sorted(set(places))
        batch = [conds[place] for place in distinct]
        outputs = comfy.samplers.calc_cond_batch(self.inner_model, batch, x, timestep, options)
        by_place = dict(zip(distinct, outputs, strict=True))
        return {branch: by_place[place] for branch, place in zip(branches, places, strict=True)}

    def _arguments(
        self, x0: Tensor, predictions: dict[Branch, Tensor], x: Tensor, sigma: Tensor, options: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of ComfyUI's post-CFG functions. As in ComfyUI, a prediction that was not computed is zeros."""
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

    The null image is added here. ValueError when positive has no retention branch, the branch is for another base
    model, or the MODEL has a CFG function, which this guidance would replace.
    """
    control = dreamvideo.retention_of(positive)
    if control is None:
        raise ValueError(
            "double-condition guidance: positive has no image; connect it through Apply Image Retention, or use "
            "CFGGuider"
        )
    control.check_base(model)
    if "sampler_cfg_function" in model.model_options:
        raise ValueError(
            "double-condition guidance: another node has set a guidance function on this MODEL (Stepped CFG, "
            "RescaleCFG, ...), which would be ignored; remove that node, or use CFGGuider"
        )
    if control.branch.config.inject == "up_blocks" and not motion.has_handlers(model):
        model = motion.with_handlers(model)
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
    """Copy the ControlNets of positive to a negative without an image, since the null text needs the branch, too."""
    if dreamvideo.retention_of(negative) is not None:
        return negative
    control = next(options["control"] for _tokens, options in positive if "control" in options)
    return [[tokens, options | {"control": control}] for tokens, options in negative]
