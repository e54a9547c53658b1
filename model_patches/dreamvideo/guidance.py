"""Double-condition guidance (arXiv 2312.03018, section 4.3, Eq. 5), for predictions of any kind (eps, v, x_0).

    text first    f = f(0, 0) + s_t (f(c_t, 0) - f(0, 0)) + s_i (f(c_t, c_i) - f(c_t, 0))
    image first   f = f(0, 0) + s_i (f(0, c_i) - f(0, 0)) + s_t (f(c_t, c_i) - f(0, c_i))

The first is Eq. 5, from p(c_t) p(c_i | c_t). The second follows from p(c_i) p(c_t | c_i); the paper mentions other
derivations without printing them, so it is reconstructed. The null text is the empty prompt, the null image is white.
The paper does not give s_t and s_i; `DEFAULT_SCALE` for both is ours (ADR 11).
"""

from collections.abc import Mapping

from torch import Tensor

Branch = str  # "none", "text", "image" or "both": which conditions a prediction has
TEXT_FIRST, IMAGE_FIRST = "text first", "image first"
ORDERS = (TEXT_FIRST, IMAGE_FIRST)
DEFAULT_SCALE = 3.0  # s_t and s_i by default


def weights(text: float, image: float, order: str = TEXT_FIRST) -> dict[Branch, float]:
    """The factor of each prediction in the sum; they add up to 1. ValueError for an unknown order."""
    if order == TEXT_FIRST:
        return {"none": 1 - text, "text": text - image, "both": image}
    if order == IMAGE_FIRST:
        return {"none": 1 - image, "image": image - text, "both": text}
    raise ValueError(f"double-condition guidance: order is {order!r}; choose one of {', '.join(ORDERS)}")


def needed(text: float, image: float, order: str = TEXT_FIRST) -> list[Branch]:
    """The predictions whose factor is not 0; the others need not be computed."""
    return [branch for branch, weight in weights(text, image, order).items() if weight]


def guided(predictions: Mapping[Branch, Tensor], text: float, image: float, order: str = TEXT_FIRST) -> Tensor:
    """Eq. 5, or the image-first chain. predictions: at least those `needed`, of one shape.

    >>> import torch
    >>> f = {"none": torch.tensor(1.0), "text": torch.tensor(2.0), "both": torch.tensor(4.0)}
    >>> guided(f, text=7.5, image=2.0)
    tensor(12.5000)
    """
    factors = weights(text, image, order)
    missing = [branch for branch, factor in factors.items() if factor and branch not in predictions]
    if missing:
        raise ValueError(
            f"double-condition guidance: the prediction {missing[0]!r} is missing, which these scales need; compute "
            "all predictions that `needed` returns"
        )
    if all(branch in predictions for branch in factors):
        (none, middle, both), (inner, outer) = [predictions[b] for b in factors], _scales(text, image, order)
        return none + inner * (middle - none) + outer * (both - middle)
    terms = [factor * predictions[branch] for branch, factor in factors.items() if factor]
    return sum(terms[1:], start=terms[0])


def _scales(text: float, image: float, order: str) -> tuple[float, float]:
    return (text, image) if order == TEXT_FIRST else (image, text)
