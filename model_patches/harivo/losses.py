"""HARIVO's training losses, one function per equation; each returns one number per clip, in fp32.

Source: "HARIVO: Harnessing Text-to-Image Models for Video Generation", arXiv 2410.07763, Eq. 1 to 5.

    L = L_DSM + l1 L_reg + l2 L_TRS + l3 L_DC

RECONSTRUCTED, because the formulas themselves could not be read: the weights l1, l2, l3; the exact form of Eq. 2 and 3
(the text names their parts and says that Eq. 2 softens towards t = T); the length of the queue of Eq. 4. The two terms
of Eq. 4 and tau = 0.1 are known. All squares are means over elements, not sums, so that a weight has the same meaning
at every image size.

Shapes: b clips, f frames, c channels, h height, w width; a is heads, n queries, m keys of an attention map, q the
entries of the queue. A batch of frames is (b f, ...), with the frames of a clip one after another.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Softening = Literal["sqrt_alpha_bar", "alpha_bar", "linear"]
SOFTENINGS: tuple[Softening, ...] = ("sqrt_alpha_bar", "alpha_bar", "linear")
TAU = 0.1


def denoising(predicted: Tensor, noise: Tensor) -> Tensor:
    """Eq. 1, L_DSM: mean ||eps - V(x_t, t, y)||^2 of each clip. Both (b, f, c, h, w) -> (b,)."""
    return _mean_square(predicted, noise)


def regulariser(
    video: Tensor, image: Tensor, *, alpha_bar: Tensor, time: Tensor, softening: Softening = "sqrt_alpha_bar"
) -> Tensor:
    """Eq. 2, L_reg: w_t mean ||V(x_t, t, y) - S(M(x_t), t, y)||^2 of each clip.

    V is the whole video model, S the frozen image model applied to each frame, M the mapping network. Gradients flow
    through both predictions: those of V distil S, those of S move M's output into the domain of S. Both predictions are
    (b, f, c, h, w) -> (b,).

    alpha_bar: (b,), abar of each clip. time: (b,), t / T in 0..1. Reconstructed: w_t, see `softening_weight`.
    """
    return softening_weight(alpha_bar, time, softening).float() * _mean_square(video, image)


def softening_weight(alpha_bar: Tensor, time: Tensor, softening: Softening = "sqrt_alpha_bar") -> Tensor:
    """w_t of Eq. 2, near 1 at t = 0 and near 0 at t = T: sqrt(abar) (default), abar, or "linear", 1 - t / T."""
    if softening == "sqrt_alpha_bar":
        return alpha_bar.sqrt()
    if softening == "alpha_bar":
        return alpha_bar
    if softening == "linear":
        return 1 - time
    raise ValueError(f"regulariser: softening is {softening!r}; use one of {', '.join(SOFTENINGS)}")


def temporal_self_attention(changes: Sequence[Tensor]) -> Tensor:
    """Eq. 3, L_TRS: sum over the L decoder layers of lambda_l * change_l, lambda_l = l / L.

    changes: results of `map_change` or `streamed_change` for the self-attention of each up-block layer, in the order of
    execution, (b,) each -> (b,). The text says that later layers weigh more; l / L is reconstructed.
    """
    if not changes:
        raise ValueError("temporal self-attention loss: no self-attention map was collected from the up blocks")
    return torch.stack([change * (i + 1) / len(changes) for i, change in enumerate(changes)]).sum(0)


def map_change(maps: Tensor, frames: int) -> Tensor:
    """mean over f < F of ||A^{f+1} - A^f||^2 of one layer: how much attention changes from frame to frame.

    maps: (b f, a, n, m), softmax weights; heads may be averaged and queries omitted beforehand -> (b,). 0 for F = 1.
    """
    clips = maps.unflatten(0, (-1, frames)).float()
    if frames == 1:
        return clips.new_zeros(len(clips))
    return (clips[:, 1:] - clips[:, :-1]).square().flatten(1).mean(1)


def streamed_change(query: Tensor, key: Tensor, frames: int, *, part: int = 64, head_mean: bool = False) -> Tensor:
    """`map_change` of softmax(Q K^T / sqrt(d)), computed for `part` queries at a time and recomputed in the backward
    pass: memory grows with part * m, not with n * m (a 64 x 64 latent has 4096^2 weights per head and frame).

    query: (b f, a, n, d), key: (b f, a, m, d) -> (b,).
    """

    def change(rows: Tensor, key: Tensor) -> Tensor:
        maps = (rows.float() @ key.float().transpose(-1, -2) * rows.shape[-1] ** -0.5).softmax(-1)
        return map_change(maps.mean(1, keepdim=True) if head_mean else maps, frames) * (rows.shape[2] / query.shape[2])

    total = torch.zeros(len(query) // frames, device=query.device)
    for rows in query.split(part, 2):
        part_change: Any = checkpoint(change, rows, key, use_reentrant=False)
        total = total + part_change
    return total


def decoupled_contrastive(
    first: Tensor, second: Tensor, negatives: Tensor, *, same_video: Tensor | None = None, tau: float = TAU
) -> Tensor:
    """Eq. 4, L_DC: -<z1, z2> / tau + log sum_q exp(<z1, z_q> / tau); the positive pair is absent from the sum.

    first, second: (b, c), projected middle features of two frames of each clip; negatives: (q, c), features of other
    videos; all are l2-normalised here. same_video: (b, q), True for entries of the same video, which are ignored.
    -> (b,); it may be negative. The loss of a clip without negatives is 0.
    """
    z1, z2, others = (F.normalize(z.float(), dim=-1) for z in (first, second, negatives))
    positive = (z1 * z2).sum(-1) / tau
    logits = z1 @ others.T / tau
    if same_video is not None:
        logits = logits.masked_fill(same_video, -torch.inf)
    without_negatives = (logits == -torch.inf).all(1)  # True also when the queue is empty
    # 0 * positive, not 0: with several processes, every parameter of the projection head must get a gradient
    if without_negatives.all():
        return 0 * positive
    return torch.where(
        without_negatives, 0 * positive, logits.masked_fill(without_negatives.unsqueeze(1), 0).logsumexp(1) - positive
    )


class Queue(nn.Module):
    """The negatives of Eq. 4: the last `size` projected features, first in, first out, and the videos they come from.

    Its buffers are part of the training state: a resumed run needs them, and several processes must push the same rows
    in the same order.
    """

    rows: Tensor
    owners: Tensor
    filled: Tensor

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"contrastive queue: size is {size}; it must hold at least 1 feature")
        self.register_buffer("rows", torch.zeros(size, channels))
        self.register_buffer("owners", torch.full((size,), -1))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def push(self, features: Tensor, owners: Tensor) -> None:
        """Append (k, c) features of the videos `owners` (k,) and drop the oldest. Gradients are detached."""
        self.rows.copy_(torch.cat([self.rows, features.detach().to(self.rows)])[-len(self.rows) :])
        self.owners.copy_(torch.cat([self.owners, owners.to(self.owners)])[-len(self.owners) :])
        self.filled.copy_((self.filled + len(features)).clamp(max=len(self.rows)))

    def negatives(self) -> Tensor:  # (q, c), oldest first
        return self.rows[len(self.rows) - int(self.filled) :].clone()

    def same_video(self, owners: Tensor) -> Tensor:
        """(b,) videos -> (b, q): which negatives come from the same video."""
        queue_owners = self.owners[len(self.owners) - int(self.filled) :]
        return owners.to(queue_owners).unsqueeze(1) == queue_owners


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).square().flatten(1).mean(1)
