"""Stories: several prompts, each for so many frames, and the anchor that is handed on (ART-V, arXiv 2311.18834).

The anchor stands still within a prompt (appendix). Under the first it is the first frame of the video, under each later
one the last frame of the prompt before. The two reference frames are those before, across the border, too.
"""

import re
from dataclasses import dataclass
from itertools import accumulate

FRAMES = 16  # a prompt has in the paper
COUNTED = re.compile(r"(\d+):\s+(.*)")


@dataclass(frozen=True)
class Story:
    """prompts: (frames, text) one after the other; the last goes on for as long as it is asked for."""

    prompts: tuple[tuple[int, str], ...]

    @property
    def frames(self) -> int:
        """Of all prompts."""
        return sum(count for count, _ in self.prompts)

    def place(self, frame: int) -> int:
        """Which prompt a frame has, both counted from 0."""
        ends = accumulate(count for count, _ in self.prompts[:-1])
        return sum(end <= frame for end in ends)

    def text(self, frame: int) -> str:
        return self.prompts[self.place(frame)][1]

    def start(self, frame: int) -> int:
        """The first frame of the prompt that a frame has."""
        return sum(count for count, _ in self.prompts[: self.place(frame)])


def anchor_of(frame: int, story: Story | None = None) -> int | None:
    """Number of the frame that is the anchor of a frame; None for frame 0, which has none. No story: one prompt.

    >>> story = parse_story("2: a cat\\n3: a dog")
    >>> [anchor_of(i, story) for i in range(5)]
    [None, 0, 1, 1, 1]
    """
    if frame == 0:
        return None
    return max(0, (story.start(frame) if story else 0) - 1)


def parse_story(text: str) -> Story:
    """Lines -> prompts, in their order. Empty lines do not count.

    "24: text" is for 24 frames, a line without a number for 16, as in the paper. ValueError when there is no line, or
    one is for no frame or says nothing.

    >>> parse_story("a cat\\n24: a dog").prompts
    ((16, 'a cat'), (24, 'a dog'))
    """
    found = tuple(_line(line) for line in filter(None, (line.strip() for line in text.splitlines())))
    if not found:
        raise ValueError('story: there is no prompt; write one per line, "24: a red ball rolls" for 24 frames of it')
    return Story(found)


def _line(line: str) -> tuple[int, str]:
    match = COUNTED.fullmatch(f"{line} ")
    count, words = (int(match[1]), match[2].strip()) if match else (FRAMES, line)
    if not count:
        raise ValueError(f"story: the line {line!r} is for 0 frames; give 1 or more, or leave the line out")
    if not words:
        raise ValueError(f"story: the line {line!r} has no words; write what its {count} frames show")
    return count, words
