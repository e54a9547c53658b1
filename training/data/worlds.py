"""The drawn worlds that a pocket model can be trained on, by name, and the interface of a world.

A world is a module: "sprites" (coloured shapes on plain backgrounds) or "scenes" (subjects on drawn grounds, seen by a
camera). Clip times run from 0 at the first frame of a clip to 1 at its last.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..plans.errors import ConfigError
from . import sprites
from .world import scenes


class World(Protocol):
    """Clip `k` of seed `s` is a pure function of (s, k). `Any` stands for the type of the world's clips."""

    @property
    def NAME(self) -> str: ...

    @property
    def CLASSES(self) -> dict[str, tuple[str, ...]]:
        """Attributes and their values. Every world has colour, shape, background, motion, speed and size."""
        ...

    def clip(self, seed: int, k: int, /, *, held_out: bool = False) -> Any:
        """Sample `k`, from the combinations for training or from the held-out ones. It has a field `motion`."""
        ...

    def held_out(self, count: int, /, *, motions: tuple[str, ...] = ..., first: int = 0) -> list[Any]:
        """Prompts for evaluations, with the given motions in turn."""
        ...

    def attributes(self, clip: Any, /) -> dict[str, str]:
        """The value of each attribute of CLASSES."""
        ...

    def caption(self, clip: Any, rng: random.Random | None = None, /, *, moves: bool = True) -> str:
        """The full caption or, with `rng`, a random wording. moves: whether it may mention the motion."""
        ...

    def wording(self, clip: Any, rng: random.Random | None = None, /) -> tuple[str, dict[str, str]]:
        """A caption and the attributes that it mentions. "second" is the colour of a second subject, or "none"."""
        ...

    def vocabulary(self) -> list[str]:
        """Every word that a caption can contain."""
        ...

    def phrases(self) -> dict[str, list[tuple[str, int]]]:
        """The phrases that name a colour, a shape or a background, each with the index of its class."""
        ...

    def render(self, clip: Any, times: Sequence[float], /, *, size: int = 64, style: str = "plain") -> Tensor:
        """Frames at the clip times: (f, 3, size, size) in 0..1."""
        ...

    def mask(self, clip: Any, times: Sequence[float], /, *, size: int = 64) -> Tensor:
        """Coverage of the subject: (f, 1, size, size) in 0..1."""
        ...

    def position(self, clip: Any, t: float, /) -> tuple[float, float]:
        """Centre of the subject, in image widths; it may lie outside of the picture."""
        ...

    def visible(self, clip: Any, times: Sequence[float], /) -> list[float]:
        """The approximate visible share of the subject at each time, 0 to 1; lower if it is too far away."""
        ...


SPRITES: World = sprites
SCENES: World = scenes
WORLDS: dict[str, World] = {SPRITES.NAME: SPRITES, SCENES.NAME: SCENES}


def world_of(recipe: Mapping[str, Mapping[str, Any]]) -> World:
    """The world that the table [data] of a recipe names; "sprites" if it names none."""
    return named(recipe.get("data", {}).get("world", SPRITES.NAME))


def named(name: str) -> World:
    """The world of that name. Raises ConfigError for an unknown name."""
    if name not in WORLDS:
        raise ConfigError(f"data.world is {name!r}; use one of {', '.join(WORLDS)}")
    return WORLDS[name]
