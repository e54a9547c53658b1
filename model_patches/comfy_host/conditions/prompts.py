"""One prompt per clip, stored as text, so that a thousand clips need no more memory than one."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import comfy.sampler_helpers

from ...artv.story import Story, parse_story
from ...core.prompt_lines import DIGITS, Keyframes, keyframes, numbered, quoted_lines

__all__ = ["PromptSchedule", "Story", "StoryPrompts", "parse_prompts", "parse_story"]

FRAMES = 16  # of a clip, in the example of a message


def parse_prompts(text: str) -> tuple[tuple[int, str], ...]:
    """Lines -> (first clip, counted from 0, prompt), in order. Empty lines are ignored.

    "3: text" applies from clip 3 on; a line without a number applies from one clip after that of the previous line.
    ValueError when there is no line, the numbers do not increase, or the text is prompt travel, whose numbers are
    frames.

    >>> parse_prompts("a cat\\na dog\\n5: a bird")
    ((0, 'a cat'), (1, 'a dog'), (4, 'a bird'))
    """
    travel = keyframes(text)
    if travel is not None:
        raise ValueError(_not_frames(travel))
    prompts: list[tuple[int, str]] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        number, prompt = numbered(line)
        if len(number) > DIGITS or (number and not prompt):
            fault = "has no text; describe what the clip shows" if not prompt else "is for a clip beyond every video"
            raise ValueError(f"prompt schedule: the line {line[:100]!r} {fault}")
        clip = int(number) - 1 if number else len(prompts) and prompts[-1][0] + 1
        if clip < 0 or (prompts and clip <= prompts[-1][0]):
            raise ValueError(
                f"prompt schedule: the line {line!r} is for clip {clip + 1}, but "
                + (f"the line before it is for clip {prompts[-1][0] + 1}" if prompts else "clips are counted from 1")
                + "; use increasing numbers"
            )
        prompts.append((clip, prompt))
    if not prompts:
        raise ValueError('prompt schedule: there is no prompt; write one per line, or "3: text" for clip 3 and later')
    if prompts[0][0]:
        raise ValueError(
            f"prompt schedule: the first prompt is for clip {prompts[0][0] + 1}; add one for clip 1, in a line without "
            "a number"
        )
    return tuple(prompts)


def _not_frames(travel: Keyframes) -> str:
    """The message for prompt travel, with the same prompts in our syntax, for clips of 16 frames."""
    clips: list[int] = []
    for frame, _ in travel:
        clips.append(max(frame // FRAMES, clips[-1] + 1) if clips else 0)
    lines = [f"{clip + 1}: {prompt}" for clip, (_, prompt) in zip(clips, travel, strict=True)]
    return (
        "prompt schedule: this is prompt-travel text, whose numbers are frames, counted from 0. Here they are clips, "
        f"counted from 1, without quotes and commas; for clips of {FRAMES} frames write\n{quoted_lines(lines)}"
    )


@dataclass
class PromptSchedule:
    """The texts, and the CLIP that encodes a text when its clip is sampled."""

    clip: Any
    lines: tuple[tuple[int, str], ...]
    last: tuple[str, Any] | None = None  # the text that was encoded last

    def text(self, clip: int) -> str:
        return self.lines[bisect_right(self.lines, clip, key=lambda line: line[0]) - 1][1]

    def encoded(self, clip: int) -> list[list[Any]]:
        """ComfyUI's conditioning of one clip."""
        text = self.text(clip)
        if self.last is None or self.last[0] != text:
            self.last = text, self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        return self.last[1]

    def instead(self, positive: Iterable[dict[str, Any]], clip: int) -> list[dict[str, Any]]:
        """A guider's positive conditions with their text replaced by that of one clip. Without conditions, the text
        alone."""
        conds = comfy.sampler_helpers.convert_cond(self.encoded(clip))
        text = ("cross_attn", "pooled_output")
        merged = [others | {key: cond[key] for key in text if key in cond} for others in positive for cond in conds]
        return merged or conds


@dataclass
class StoryPrompts(PromptSchedule):
    """A story as a schedule whose clips are single frames."""

    story: Story = field(kw_only=True)

    @classmethod
    def of(cls, clip: Any, story: Story) -> "StoryPrompts":
        starts = accumulate((count for count, _ in story.prompts[:-1]), initial=0)
        lines = tuple((start, text) for start, (_, text) in zip(starts, story.prompts, strict=True))
        return cls(clip, lines, story=story)
