"""Four-way guidance (ART-V, arXiv 2311.18834, Eq. 8): away from what each condition, left out, would have given.

    P^ = P + w_ref (P - P_ref) + w_anc (P - P_anc) + w_txt (P - P_txt)

P: the prediction under all conditions; P_k: without condition k. The weights of P and the P_k sum to 1, so noise, the
clean latent and v may be guided alike. The scale that other guidance calls cfg is 1 + w_txt.

A prediction is a blend, P = m S + (1 - m) D of the static part and of the dynamic network's (`masked`). Of which m?

    one for all     that of P, in the P_k too. Then P^ = m S + (1 - m) D^: the dynamic network is guided, then blended.
                    OURS, and the default.
    one for each    its own in each P_k, as Eq. 8 reads with whole predictions.

With one for each, P - P_txt holds (m - m_txt) (S - D). It does not vanish with the noise as the difference of two
predictions of a network does, and 6.5 of it can carry a latent farther from the frame before at every step: by
|1 - m + 6.5 (m_txt - m)| times, 2 for m = .3 beside m_txt = .5. Measured: docs/adr/0010.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

CONDITIONS: tuple[str, ...] = ("reference", "anchor", "text")
MASKS: tuple[str, ...] = ("one for all", "one for each")


@dataclass(frozen=True)
class Weights:
    """w_ref, w_anc and w_txt of Eq. 8, no unit. ValueError for what is no number."""

    reference: float = 0.25
    anchor: float = 0.25
    text: float = 6.5

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            if not math.isfinite(weight):
                raise ValueError(f"ART-V guidance: the weight of {name} is {weight}; give a finite number")


def needed(weights: Weights, given: Iterable[str] = CONDITIONS) -> tuple[str, ...]:
    """The conditions whose P_k Eq. 8 needs, in its order. given: those that a frame has.

    A weight of 0 needs none, and leaving out what was never there changes nothing.

    >>> needed(Weights(anchor=0.0)), needed(Weights(), {"text"})
    (('reference', 'text'), ('text',))
    """
    there = set(given)
    return tuple(name for name in CONDITIONS if name in there and getattr(weights, name))


def guided(full: Tensor, without: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """Eq. 8. full: P, any shape. without: P_k of the same shape by the name of k; one that is missing counts as P."""
    return full + sum(getattr(weights, name) * (full - p) for name, p in without.items())
