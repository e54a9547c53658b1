"""Stories: several prompts, each with a number of frames, and the anchor of each frame (ART-V, arXiv 2311.18834).

The anchor stays the same within a prompt (appendix). For the first prompt it is the first frame of the video, for each
later prompt the last frame of the previous prompt. The two reference frames are always the two previous frames, even
where the prompt changes.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from ..core.prompt_lines import Keyframes, keyframes, numbered

FRAMES = 16  # per prompt in the paper
MAX_FRAMES = 1_000_000  # of a story
DIGITS = 4000  # of a number that Python reads


@dataclass(frozen=True)
class Story:
    """prompts: (frames, text) in order; the last prompt also applies to all frames after its own."""

    prompts: tuple[tuple[int, str], ...]

    @property
    def frames(self) -> int:
        """Number of frames of all prompts."""
        return self.ends[-1]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """For each prompt, the first frame behind its own ones."""
        return tuple(accumulate(count for count, _ in self.prompts))

    def place(self, frame: int) -> int:
        """Index of the prompt of a frame, both counted from 0."""
        return min(bisect_right(self.ends, frame), len(self.prompts) - 1)

    def text(self, frame: int) -> str:
        return self.prompts[self.place(frame)][1]

    def start(self, frame: int) -> int:
        """The first frame of the prompt to which a frame belongs."""
        place = self.place(frame)
        return self.ends[place - 1] if place else 0


def anchor_of(frame: int, story: Story | None = None) -> int | None:
    """Index of the anchor of a frame; None for frame 0, which has no anchor. Without a story there is one prompt.

    >>> story = parse_story("2: a cat\\n3: a dog")
    >>> [anchor_of(i, story) for i in range(5)]
    [None, 0, 1, 1, 1]
    """
    if frame == 0:
        return None
    return max(0, (story.start(frame) if story else 0) - 1)


def parse_story(text: str) -> Story:
    """Lines -> prompts, in order. Empty lines are ignored. Prompt-travel text of other packs, whose numbers are the
    first frame of each prompt, is understood.

    "24: text" applies to 24 frames, a line without a number to 16, as in the paper. ValueError when there is no line,
    a line has 0 frames or no text, or the frames are more than MAX_FRAMES.

    >>> parse_story("a cat\\n24: a dog").prompts
    ((16, 'a cat'), (24, 'a dog'))
    """
    travel = keyframes(text)
    if travel is not None:
        text = _counted(travel)
    prompts, frames = [], 0
    for line in filter(None, (line.strip() for line in text.splitlines())):
        prompts.append(_line(line))
        frames += prompts[-1][0]
        if frames > MAX_FRAMES:
            raise ValueError(
                f"story: up to the line {line[:100]!r} there are {frames:,} frames, and a video can have at most "
                f"{MAX_FRAMES:,}; give smaller numbers, or make several videos"
            )
    if not prompts:
        raise ValueError('story: there is no prompt; write one per line, "24: a red ball rolls" for 24 frames of it')
    return Story(tuple(prompts))


def _counted(travel: Keyframes) -> str:
    """First frames -> our lines, in which each prompt has a number of frames; the last one has 16."""
    starts = [0, *(frame for frame, _ in travel[1:])]
    counts = [last - first for first, last in pairwise(starts)]
    if travel[0][0] or any(count < 1 for count in counts):
        raise ValueError(
            f"story: this is prompt-travel text for the frames {', '.join(str(frame) for frame, _ in travel[:8])}, "
            'which must begin at 0 and rise; or write the number of frames of each prompt, one per line, as "24: a red '
            'ball rolls"'
        )
    return "\n".join(f"{count}: {text}" for count, (_, text) in zip([*counts, FRAMES], travel, strict=True))


def _line(line: str) -> tuple[int, str]:
    number, text = numbered(line)
    if len(number) > DIGITS:
        raise ValueError(f"story: the line {line[:100]!r} is for too many frames; a video can have {MAX_FRAMES:,}")
    count, prompt = (int(number), text) if number else (FRAMES, line)
    if not count:
        raise ValueError(f"story: the line {line!r} is for 0 frames; give 1 or more, or leave the line out")
    if not prompt:
        raise ValueError(f"story: the line {line!r} has no text; describe what its {count} frames show")
    return count, prompt
