"""Lines of prompts with numbers, in our syntax and in that of other packs' prompt travel.

Ours:           a cat              Prompt travel:   "0": "a cat",
                3: a dog                            "16": "a dog"

Prompt travel numbers frames, counted from 0. Its numbers or its texts are in quotes; some packs leave out the quotes.
"""

import re

DIGITS = 9  # of a number that can be meant
NUMBERED = re.compile(r"(\d+)\s*:(?:\s+(.*)|(\D.*)|)")
KEY = re.compile(r"""\{?\s*["']\d+["']\s*:""")
QUOTED = re.compile(r"""\d+\s*:\s*(["']).*\1\s*,?""")
KEYFRAME = re.compile(r"""["']?(\d{1,9})["']?\s*:\s*(["'])((?:\\.|(?!\2).)*)\2""")
SHOWN = 4  # prompts in a message

Keyframes = tuple[tuple[int, str], ...]


def numbered(line: str) -> tuple[str, str]:
    """ "3: text" or "3:text" -> ("3", "text"); ("", line) for a line without a number. A ratio, "16:9", is text.

    >>> numbered("3: a dog"), numbered("3:a dog"), numbered("16:9 picture")
    (('3', 'a dog'), ('3', 'a dog'), ('', '16:9 picture'))
    """
    match = NUMBERED.fullmatch(line.strip())
    return (match[1], (match[2] or match[3] or "").strip()) if match else ("", line.strip())


def keyframes(text: str) -> Keyframes | None:
    """(frame counted from 0, prompt) of prompt-travel text, in order; None for any other text.

    >>> keyframes('"0": "a cat",\\n"16": "a dog"')
    ((0, 'a cat'), (16, 'a dog'))
    """
    lines = [line.strip() for line in text.splitlines() if line.strip(" \t{},")]
    if not lines:
        return None
    if any(KEY.match(line) for line in lines) or _quoted_texts(lines):
        entries = [(int(match[1]), match[3].replace("\\", "")) for match in KEYFRAME.finditer(text)]
        return tuple(entries) or None
    numbers = [numbered(line) for line in lines]
    if numbers[0][0].strip("0") or not numbers[0][0] or any(not 0 < len(number) <= DIGITS for number, _ in numbers):
        return None
    return tuple((int(number), prompt.rstrip(",")) for number, prompt in numbers)


def _quoted_texts(lines: list[str]) -> bool:
    """Whether every line is a number and a text in quotes, and they begin at frame 0 or are separated by commas."""
    if not all(QUOTED.fullmatch(line) for line in lines):
        return False
    return lines[0].split(":")[0].strip().strip("0") == "" or any(line.endswith(",") for line in lines)


def quoted_lines(lines: list[str]) -> str:
    """The first lines of an example for a message, each on a line of its own."""
    return "\n".join(lines[:SHOWN]) + ("\n..." if len(lines) > SHOWN else "")
