"""One prompt per clip, kept as text: a thousand clips cost no more memory than one."""

import re
from dataclasses import dataclass
from typing import Any

NUMBERED = re.compile(r"(\d+):\s+(.*)")


def parse_prompts(text: str) -> tuple[tuple[int, str], ...]:
    """Lines -> (clip from which on, counted from 0, prompt), in order. Empty lines do not count.

    "3: text" is from clip 3 on; a line without a number is for the clip after that of the line before. ValueError when
    there is no line, or the numbers do not rise.

    >>> parse_prompts("a cat\\na dog\\n5: a bird")
    ((0, 'a cat'), (1, 'a dog'), (4, 'a bird'))
    """
    found: list[tuple[int, str]] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        match = NUMBERED.fullmatch(line)
        clip = int(match[1]) - 1 if match else len(found) and found[-1][0] + 1
        if clip < 0 or (found and clip <= found[-1][0]):
            raise ValueError(
                f"prompt schedule: the line {line!r} is for clip {clip + 1}, but "
                + (f"the line before it is for clip {found[-1][0] + 1}" if found else "clips are counted from 1")
                + "; let the numbers rise"
            )
        found.append((clip, match[2] if match else line))
    if not found:
        raise ValueError('prompt schedule: there is no prompt; write one per line, or "3: text" for clip 3 and later')
    if found[0][0]:
        raise ValueError(
            f"prompt schedule: the first prompt is for clip {found[0][0] + 1}; give one for clip 1, in a line without "
            "a number"
        )
    return tuple(found)


@dataclass
class PromptSchedule:
    """Texts, and the CLIP that encodes them when their clip is sampled."""

    clip: Any
    lines: tuple[tuple[int, str], ...]
    last: tuple[str, Any] | None = None  # the text that was encoded last

    def text(self, clip: int) -> str:
        return next(text for start, text in reversed(self.lines) if start <= clip)

    def encoded(self, clip: int) -> list[list[Any]]:
        """ComfyUI's conditioning of one clip."""
        text = self.text(clip)
        if self.last is None or self.last[0] != text:
            self.last = text, self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        return self.last[1]
