"""What happens to files: bits, parts and whole contents change, and numbers and words in JSON become others."""

import json
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    *(0, -1, 1, 2, 7, 10**8, 2**31, 2**62, 10**400, 1.5, -0.5, 1e308, float("nan"), float("inf"), True, False, None),
    *("", "x", "nonsense", "0", "\u0000", "é" * 50, [], [0], [1, 2, 3], ["x"], [[]], {}, {"x": 1}),
)
PAGES = (
    b"<!DOCTYPE html><html><body>404</body></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    b'{"error": "not found"}',
    b"",
    b"\x00" * 64,
    b"[" * 100_000,
    b"\xff\xfe\x00\x01",
)


def damaged(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The bytes of a file after an accident, and its name."""
    accident = rng.choice(ACCIDENTS)
    return accident(content, rng), accident.__name__.strip("_")


def _flip(content: bytes, rng: random.Random) -> bytes:
    """Some bits, half of them at the beginning, where formats have their structure."""
    changed = bytearray(content or b"\x00")
    for _ in range(rng.choice((1, 1, 1, 8))):
        at = rng.randrange(min(len(changed), rng.choice((8, 64, 512, 2**40))))
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _blank(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 8, 64, 4096)))
    return content[:start] + bytes(end - start) + content[end:]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 7, 100))) + content[at:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start : start + rng.choice((8, 100, 5000))] + content[start:]


def _append(content: bytes, rng: random.Random) -> bytes:
    return content + rng.randbytes(rng.choice((1, 8, 1000)))


def _noise(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(min(len(content), 5000))


def _page(_content: bytes, rng: random.Random) -> bytes:
    return rng.choice(PAGES)


def _number(content: bytes, rng: random.Random) -> bytes:
    """Eight bytes become a length that is far too large, or negative."""
    if len(content) < 8:
        return content
    at = rng.choice((0, 0, rng.randrange(len(content) - 7)))
    value = rng.choice((2**63, 2**64 - 1, 2**40, 2**31, 0, len(content)))
    return content[:at] + value.to_bytes(8, "little") + content[at + 8 :]


ACCIDENTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _cut, _blank, _insert, _repeat, _append, _noise, _page, _number),
)


def odd_value(rng: random.Random) -> Any:
    return rng.choice(ODD)


def changed_json(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """A value with one place changed: another value, an entry removed, added, renamed or repeated."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        return _changed_table(dict(value), rng, depth)
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [changed_json(v, rng, depth + 1) if i == place else v for i, v in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 1000, -value, value))
    return odd_value(rng)


def _changed_table(table: dict[str, Any], rng: random.Random, depth: int) -> dict[str, Any]:
    name, action = rng.choice(sorted(table)), rng.choice(("change", "change", "change", "remove", "add", "rename"))
    if action == "change":
        table[name] = changed_json(table[name], rng, depth + 1)
    elif action == "remove":
        del table[name]
    elif action == "add":
        table[rng.choice(("colour", "x", "", "__class__"))] = odd_value(rng)
    else:
        table[f"{name}{rng.choice(('s', '_', '.0'))}"] = table.pop(name)
    return table


def as_text(value: Any) -> str:
    """JSON as a careless program writes it, with NaN and Infinity."""
    return json.dumps(value)


def damaged_text(text: str, rng: random.Random) -> bytes:
    """A text file after an edit that went wrong: other bytes, another encoding, nested too deeply, far too long."""
    choice = rng.randrange(6)
    if choice == 0:
        return text.encode("utf-16")
    if choice == 1:
        return text.encode() + b"\xff"
    if choice == 2:
        return b"[" * 100_000
    if choice == 3:
        return (text + "\n").encode() * 3
    return damaged(text.encode(), rng)[0]
