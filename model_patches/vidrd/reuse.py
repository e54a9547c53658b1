"""A long video, clip by clip: each clip starts with noise and latents of the previous clip, in reverse frame order.

Source: "Reuse and Diffuse: Iterative Denoising for Text-to-Video Generation" (VidRD), arXiv 2309.03549, Eq. 5 to 8 and
Algorithm 1; the order of reading and writing is that of the published code. The last frame of a clip and the first of
the next share their noise and, in the first steps, their latents, so they look alike; later frames drift apart.

Frame reuse (FNR, Eq. 6)      the first M frames get the noise of the last M frames, in reverse order
Previous noise (PNS, Eq. 7)   the others get noise of the remaining frames, mixed with new noise to a variance of 1
Staged guidance (DSG, Eq. 8)  in the first steps the latents of the first M frames are replaced by those of the previous
                              clip, for frame j in beta (1 - j / M) of all steps

Shapes: v videos, N frames of a clip, S steps of the sampler; noise and latents are (v, N, ...). i counts clips, k
steps, j frames. States are the inputs of a sampler's step, in the scale of the sampler: the noise levels of all clips
are equal, so the scale does not matter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["code", "paper"]
RULES: tuple[Rule, ...] = ("code", "paper")


@dataclass(frozen=True, kw_only=True)
class Config:
    """How much of the previous clip is reused. The defaults are the paper's.

    overlap: M, frames that continue the previous clip; at most N. Above N / 2, the middle frames copy each other from
        clip to clip and are never renewed. 0: the noise is mixed for all frames, and no frame is guided.
    recycle: alpha. The noise of the other frames is reused with weight alpha / sqrt(1 + alpha^2); 0: all noise is new.
    staged_guidance: beta, the share of the steps in which frame 0 is guided; frame j is guided in (1 - j / M) of these.
    rule: "code" replaces the input of step k while k < beta S (1 - j / M), as the published code does. "paper" is the
        literal Eq. 8, which guides one step more.

    Raises ValueError for a number out of range or an unknown rule.
    """

    overlap: int = 4
    recycle: float = 4.0
    staged_guidance: float = 0.4
    rule: Rule = "code"

    def check(self, frames: int) -> None:
        """ValueError when a clip has fewer than `overlap` frames."""
        if self.overlap > frames:
            raise ValueError(
                f"reuse: overlap is {self.overlap}, but a clip has only {frames} frames; set overlap to at most "
                f"{frames}, or to half of it ({frames // 2}) so that every clip has new frames"
            )

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"reuse: rule is {self.rule!r}; use one of {', '.join(RULES)}")
        if self.overlap < 0:
            raise ValueError(f"reuse: overlap is {self.overlap}; give 0 or more frames")
        if not 0 <= self.recycle < math.inf:
            raise ValueError(f"reuse: recycle is {self.recycle}; it must be at least 0 and finite")
        if not 0 <= self.staged_guidance <= 1:
            raise ValueError(
                f"reuse: staged_guidance is {self.staged_guidance}; it must be a share of the steps, from 0 to 1"
            )


def reused_share(recycle: float) -> float:
    """a = alpha / sqrt(1 + alpha^2) of Eq. 7: the correlation of a frame's noise with the reused noise.

    >>> round(reused_share(4.0), 4)
    0.9701
    """
    return recycle / math.sqrt(1 + recycle**2)


def next_noise(before: Tensor, fresh: Tensor, config: Config) -> Tensor:
    """Initial noise of a clip, Eq. 6 and 7: z^{i,j} = z^{i-1,N-1-j} for j < M, else a z^{i-1,N-1-j} + e.

    e ~ N(0, 1 / (1 + alpha^2)) is the scaled unit noise `fresh`, so the variance stays 1. Both (v, N, ...). With M = N
    every frame is reused unchanged (the published code then mixes all frames, because of a slice of length 0).
    ValueError when M > N or the shapes differ.
    """
    if before.shape != fresh.shape:
        raise ValueError(
            f"reuse: the previous clip has the shape {tuple(before.shape)}, this clip {tuple(fresh.shape)}; clips of "
            "one video need the same number of frames and the same size"
        )
    frames = fresh.shape[1]
    config.check(frames)
    mirrored = before.flip(1).to(fresh)
    a = reused_share(config.recycle)
    mixed = a * mirrored + math.sqrt(1 - a * a) * fresh
    return torch.cat([mirrored[:, : config.overlap], mixed[:, config.overlap :]], dim=1)


def guided_frames(step: int, steps: int, config: Config) -> int:
    """Number of leading frames that are replaced before step k of S (Eq. 8): those with k < beta S (1 - j / M).

    With the rule "paper" the condition is k < beta S (1 - j / M) + 1, and at k = 0 the noise has replaced these frames
    already: Eq. 8 is about the outputs of steps, and the output of step k is the input of step k + 1.

    >>> [sum(guided_frames(k, 50, Config()) > j for k in range(50)) for j in range(4)]
    [20, 15, 10, 5]
    >>> [sum(guided_frames(k, 50, Config(rule="paper")) > j for k in range(50)) for j in range(4)]
    [21, 16, 11, 6]
    """
    overlap, extra = config.overlap, config.rule == "paper"
    bounds = (config.staged_guidance * steps * (1 - j / overlap) + extra for j in range(overlap))
    return sum(step < bound - 1e-9 for bound in bounds)  # in floating point, 0.4 * 50 * 0.75 is 15.000000000000002


@dataclass(frozen=True)
class History:
    """What the next clip needs from a clip: its noise, and the states that will be replayed, in frame order.

    Only states that can be replayed are stored: at step k those of the last `guided_frames(k)` frames.
    """

    sigmas: tuple[float, ...]
    noise: Tensor  # (v, N, ...), unit variance
    states: dict[int, Tensor] = field(default_factory=dict)  # step -> (v, guided, ...)
    step_noise: tuple[Tensor, ...] = ()  # noise of a stochastic sampler's steps, in order; each (v, N, ...)

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.noise, *self.states.values(), *self.step_noise))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for a file."""
        named = {f"state.{k}": state for k, state in self.states.items()}
        named |= {f"step_noise.{k}": noise for k, noise in enumerate(self.step_noise)}
        return {"sigmas": torch.tensor(self.sigmas, dtype=torch.float64), "noise": self.noise, **named}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "History":
        """The history from its `tensors`, bit for bit. ValueError when a part is missing."""
        if missing := {"sigmas", "noise"} - tensors.keys():
            raise ValueError(f"reuse: these are not the tensors of a clip: {', '.join(sorted(missing))} is missing")
        states = {int(name.removeprefix("state.")): value for name, value in tensors.items() if name[:6] == "state."}
        step_noise = (tensors[f"step_noise.{k}"] for k in range(sum(name[:11] == "step_noise." for name in tensors)))
        return cls(tuple(tensors["sigmas"].tolist()), tensors["noise"], states, tuple(step_noise))


class Recorder:
    """Replays the states of the previous clip while one clip is sampled, and records those that the next one needs.

    Algorithm 1: before step k, z[j] = C[k][j] for the guided frames j; then C[k] = z in reverse order. Reading precedes
    writing, so the recorded states contain the replaced frames, and guidance carries over from clip to clip.
    """

    def __init__(self, config: Config, sigmas: Sequence[float], before: History | None) -> None:
        self.config, self.sigmas, self.before = config, tuple(sigmas), before
        self.states: dict[int, Tensor] = {}
        if before is not None and before.sigmas != self.sigmas:
            raise ValueError(
                f"reuse: the previous clip was sampled with {_summary(before.sigmas)}, this clip with "
                f"{_summary(self.sigmas)}; use the same steps, scheduler and denoise for all clips of a video"
            )

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def step(self, k: int, z: Tensor) -> Tensor:
        """The input of step k with the guided frames replaced: (v, N, ...) -> same. `z` itself is not modified."""
        frames = z.shape[1]
        self.config.check(frames)
        count = guided_frames(k, self.steps, self.config)
        if not count:
            return z
        if self.before is not None:
            z = torch.cat([self._replayed(k, z, count), z[:, count:]], dim=1)
        self.states[k] = z[:, frames - count :].detach().cpu().clone()
        return z

    def history(self, noise: Tensor, step_noise: Sequence[Tensor] = ()) -> History:
        """The history for the next clip, after the last step. noise: that of this clip, (v, N, ...)."""
        return History(self.sigmas, noise.detach().cpu(), self.states, tuple(step_noise))

    def _replayed(self, k: int, z: Tensor, count: int) -> Tensor:
        assert self.before is not None
        state = self.before.states.get(k)
        if state is None or state.shape[1] < count or state[:, 0].shape != z[:, 0].shape:
            content = "nothing" if state is None else f"latents of the shape {tuple(state.shape)}"
            raise ValueError(
                f"reuse: the previous clip has {content} for step {k}, but a clip of the shape {tuple(z.shape)} needs "
                f"its last {count} frames; use the same overlap, staged_guidance and size for all clips of a video"
            )
        return state.flip(1)[:, :count].to(z)


class StepNoise:
    """Noise of a stochastic sampler's steps, reused like the initial noise. Ours: the paper's sampler adds none.

    Without it, the step noise makes two clips diverge at once, and replaying latents has no effect. draw(): new unit
    noise (v, N, ...) at each call; the calls of two clips are matched by their order.
    """

    def __init__(self, config: Config, draw: Callable[[], Tensor], before: History | None) -> None:
        self.config, self.draw, self.before = config, draw, before
        self.draws: list[Tensor] = []

    def __call__(self) -> Tensor:
        noise = self.draw()
        if self.before is not None:
            if len(self.draws) >= len(self.before.step_noise):
                raise ValueError(
                    f"reuse: the sampler draws noise more often than in the previous clip "
                    f"({len(self.before.step_noise)} times); use the same sampler with the same settings for all clips"
                )
            noise = next_noise(self.before.step_noise[len(self.draws)], noise, self.config)
        self.draws.append(noise.detach().cpu())
        return noise


def _summary(sigmas: Sequence[float]) -> str:
    ends = f" from {sigmas[0]:.4g} to {sigmas[-1]:.4g}" if sigmas else ""
    return f"{max(len(sigmas) - 1, 0)} steps{ends}"
