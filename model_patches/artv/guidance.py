"""Four-way guidance (ART-V, arXiv 2311.18834, Eq. 8): away from the prediction without each of the conditions.

    P^ = P + w_ref (P - P_ref) + w_anc (P - P_anc) + w_txt (P - P_txt)

P: the prediction with all conditions; P_k: without condition k. The weights of P and the P_k sum to 1, so the formula
holds for predictions of the noise, of the clean latent and of v. The usual cfg scale is 1 + w_txt.

A prediction is a blend P = m S + (1 - m) D of the static part and the dynamic network (`masked`). Two choices of m:

    one for all     the mask of P is used in every P_k. Then P^ = m S + (1 - m) D^: the dynamic network is guided, then
                    blended. OURS, and the default.
    one for each    every P_k uses its own mask, which is Eq. 8 applied to whole predictions.

With one for each, P - P_txt contains (m - m_txt) (S - D). Unlike the difference of two predictions of one network,
this term does not vanish with the noise. Multiplied by 6.5, it can move a latent away from the previous frame at every
step, by a factor of |1 - m + 6.5 (m_txt - m)|: 2 for m = .3 and m_txt = .5. Measured in docs/adr/0010.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

CONDITIONS: tuple[str, ...] = ("reference", "anchor", "text")
MASKS: tuple[str, ...] = ("one for all", "one for each")


@dataclass(frozen=True)
class Weights:
    """w_ref, w_anc and w_txt of Eq. 8, no unit. ValueError for NaN and infinite values."""

    reference: float = 0.25
    anchor: float = 0.25
    text: float = 6.5

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            if not math.isfinite(weight):
                raise ValueError(f"ART-V guidance: the weight of {name} is {weight}; give a finite number")


def needed(weights: Weights, conditions: Iterable[str] = CONDITIONS) -> tuple[str, ...]:
    """The conditions k whose P_k is needed for Eq. 8, in its order. conditions: those that a frame has.

    P_k is not needed if its weight is 0 or if the frame does not have condition k.

    >>> needed(Weights(anchor=0.0)), needed(Weights(), {"text"})
    (('reference', 'text'), ('text',))
    """
    available = set(conditions)
    return tuple(name for name in CONDITIONS if name in available and getattr(weights, name))


def guided(full: Tensor, without: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """Eq. 8. full: P, of any shape. without: name of k -> P_k, of the same shape; a missing P_k counts as P."""
    return full + sum(getattr(weights, name) * (full - p) for name, p in without.items())
