"""Classifier-free guidance with a large scale at high noise levels and a normal one at low levels.

Source: arXiv 2410.07763, appendix D: a scale of 10 to 15 for t in (0.7 T, T], then 7.5. Ours: any number of steps.

t is the time of the noise level as a fraction of T: 1 is pure noise, 0 the finished latent. The schedule therefore does
not depend on the sampler or its number of steps.
"""

from dataclasses import dataclass
from itertools import pairwise

EARLY, LATE, SWITCH = 12.5, 7.5, 0.7  # the middle of the paper's range, 10 to 15


@dataclass(frozen=True)
class SteppedScale:
    """steps: (t, scale) with falling t. The first step whose t is below the time of a noise level gives the scale.

    Raises ValueError when there are no steps, t does not fall within [0, 1), the last t is not 0, or a scale is
    negative.
    """

    steps: tuple[tuple[float, float], ...] = ((SWITCH, EARLY), (0.0, LATE))

    def __post_init__(self) -> None:
        times = [t for t, _ in self.steps]
        if not times or times[-1] != 0 or times[0] >= 1 or any(a <= b for a, b in pairwise(times)):
            raise ValueError(
                f"stepped CFG: the times {', '.join(f'{t:g}' for t in times) or 'are missing'} do not fall from below "
                '1 to 0; write for example "0.7:12.5, 0:7.5", which is 12.5 for t above 0.7 and 7.5 below'
            )
        if min(scale for _, scale in self.steps) < 0:
            raise ValueError("stepped CFG: a scale is negative; give 1 for no guidance, 7.5 is usual")

    @classmethod
    def parse(cls, text: str) -> "SteppedScale":
        """'0.9:15, 0.7:10, 0:7.5' -> its steps. ValueError names an entry that is not t:scale."""
        steps = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            t, _, scale = entry.partition(":")
            try:
                steps.append((float(t), float(scale)))
            except ValueError as error:
                raise ValueError(
                    f'stepped CFG: {entry!r} is not "t:scale"; write for example "0.7:12.5, 0:7.5"'
                ) from error
        return cls(tuple(steps))

    def at(self, t: float) -> float:
        """The scale at time t in (0, 1]. The step at 0 also applies to t = 0."""
        return next((scale for begin, scale in self.steps if t > begin), self.steps[-1][1])
