"""HARIVO's frame-wise tokens: n additional text tokens for each frame, so that frames can differ in content.

Source: arXiv 2410.07763, section 3.5. Stated: text tokens (77 x 768) pass through k pairs of (Linear, SiLU) and a
convolution over the token axis to f x n x 768, with n = 3 and f = 24; each frame's cross-attention gets its n tokens
after the 77 tokens of the text.

    t_theta(T) = reshape_{f, n}(Conv1d_{77 -> f n}((SiLU Linear)^k (T)))

RECONSTRUCTED: k and the kernel; the text tokens are the convolution's input channels. Ours, for practical use: other
frame counts (linear interpolation along f with fixed first and last frame), prompts of several chunks, the strength.

A new generator *does* change the model: attention is then a softmax over more tokens. The model is unchanged only if no
tokens are appended, which is what a host does at strength 0.

Shapes: b prompts, f frames, L text tokens, n tokens per frame, d their width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import TokenConfig


class FrameTokens(nn.Module):
    """Text tokens of a prompt -> tokens of each frame. `ops` provides the layer classes (Linear, Conv1d)."""

    def __init__(self, config: TokenConfig, *, ops: Any = nn) -> None:
        super().__init__()
        d = config.context_dim
        self.config = config
        self.layers = nn.ModuleList(ops.Linear(d, d) for _ in range(config.layers))
        outputs = config.frames * config.tokens
        self.conv = ops.Conv1d(config.context_length, outputs, config.kernel, padding=config.kernel // 2)

    def forward(self, context: Tensor, frames: int) -> Tensor:
        """context: (b, L, d), including the empty prompt -> (b, f, chunks * n, d).

        A prompt longer than `context_length` is encoded in chunks of that length, and each chunk gets its own n tokens.
        Tokens after the last whole chunk are not text and are ignored. ValueError when the width does not match or
        there is no whole chunk.
        """
        chunks = self.chunks(context)
        b, k = chunks.shape[:2]
        x = chunks.flatten(0, 1)  # (b k, 77, d)
        for layer in self.layers:
            x = F.silu(layer(x))
        x = self.conv(x).unflatten(1, (self.config.frames, self.config.tokens))  # (b k, f, n, d)
        x = at_frames(x, frames).unflatten(0, (b, k))
        return x.transpose(1, 2).flatten(2, 3)

    def text(self, context: Tensor) -> Tensor:
        """The whole chunks of a prompt: (b, L, d) -> (b, chunks * 77, d); errors as in `forward`."""
        return self.chunks(context).flatten(1, 2)

    def chunks(self, context: Tensor) -> Tensor:
        """(b, L, d) -> (b, chunks, 77, d); errors as in `forward`."""
        length, width = self.config.context_length, self.config.context_dim
        if context.shape[-1] != width:
            raise ValueError(
                f"frame-wise tokens: they were trained on text tokens of width {width}, but this prompt has width "
                f"{context.shape[-1]}; load the base model and the text encoder that they were trained with"
            )
        whole = context.shape[1] // length
        if not whole:
            raise ValueError(
                f"frame-wise tokens: a prompt of {context.shape[1]} tokens is shorter than the {length} they were "
                "trained on; encode it with the text encoder of the base model, which pads prompts to this length"
            )
        return context[:, : whole * length].unflatten(1, (whole, length))


def at_frames(tokens: Tensor, frames: int) -> Tensor:
    """Tokens for another frame count, (b, f, n, d) -> (b, frames, n, d): linear interpolation along f, ends fixed.

    Ours: the paper generates clips of one length.
    """
    b, f, n, d = tokens.shape
    if frames == f:
        return tokens
    line = tokens.permute(0, 2, 3, 1).reshape(b, n * d, f)
    line = F.interpolate(line, size=frames, mode="linear", align_corners=True)
    return line.unflatten(1, (n, d)).permute(0, 3, 1, 2)


def softened(tokens: Tensor, context: Tensor, strength: float) -> Tensor:
    """Tokens at a strength s: c + s (t - c), where c is the prompt's last token. (b, f, n, d) -> same.

    Ours. 1 is the trained model. Towards 0 the tokens become copies of the last token, which in Stable Diffusion is
    padding, of which the text already has many, so the image approaches that without tokens. At exactly 0, hosts append
    no tokens.
    """
    if strength == 1:
        return tokens
    anchor = context[:, -1:, :].unsqueeze(1).to(tokens)  # (b, 1, 1, d)
    return anchor + strength * (tokens - anchor)


def append(context: Tensor, tokens: Tensor) -> Tensor:
    """Text tokens, then frame-wise tokens. context (b f, L, d), tokens (b, f, n, d) -> (b f, L + n, d)."""
    return torch.cat([context, tokens.flatten(0, 1).to(context)], dim=1)
