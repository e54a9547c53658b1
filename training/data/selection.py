"""Which clips of a folder are used for training: a list of scored clips as JSON lines, written by the verb `select`.

The first line names the source of the clips and the stages that have filtered them, with every setting that a score
depends on. It is followed by one line per clip, in the order of the folder:

    {"format": "stillmotion/selection/1", "source": {...}, "stages": [{"stage": "motion", "low": 1.0, ...}]}
    {"clip": 0, "name": "dog.mp4 0", "kept": true, "motion": 3.2}

A later stage scores only the clips that are still kept, and can only remove more of them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...model_patches.files import parse_json, replacing
from ..plans.errors import ConfigError

FORMAT = "stillmotion/selection/1"


@dataclass(frozen=True)
class Row:
    """One clip: its number in the folder, its name, whether it is kept, and its scores by name."""

    clip: int
    name: str
    kept: bool = True
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """A list. `source` identifies the clips: {"latents": digest}, or {"videos": digest, "frames": n, "fps": rate}."""

    source: dict[str, Any]
    stages: list[dict[str, Any]]
    rows: list[Row]

    @property
    def kept(self) -> frozenset[int]:
        return frozenset(row.clip for row in self.rows if row.kept)

    def after(self, stage: dict[str, Any], rows: list[Row]) -> "Selection":
        """The list with one more stage; `rows` replace the rows of the same clips."""
        updates = {row.clip: row for row in rows}
        return replace(self, stages=[*self.stages, stage], rows=[updates.get(row.clip, row) for row in self.rows])

    def save(self, path: Path) -> None:
        """Write the list; an interrupted write leaves no partial file behind."""
        head = {"format": FORMAT, "source": self.source, "stages": self.stages}
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
            for line in (head, *map(_entry, self.rows)):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def load(path: Path) -> Selection:
    """Read a list. Raises ConfigError when the file is missing or has another format."""
    if not path.is_file():
        raise ConfigError(f"there is no list {path}; make one with: python -m stillmotion.training select motion")
    with path.open(encoding="utf-8") as file:
        try:
            head = parse_json(next(file, "{}"))
            rows = list(_rows(file)) if head.get("format") == FORMAT else None
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path} is broken ({error}); make it again with `select`") from error
    if rows is None:
        raise ConfigError(
            f"{path} is not a list of `select` (its first line does not name the format {FORMAT}); give a list that "
            "`python -m stillmotion.training select` wrote"
        )
    if not isinstance(head.get("source"), dict) or not isinstance(head.get("stages"), list):
        raise ConfigError(f"{path} is broken (its first line lacks source or stages); make it again with `select`")
    return Selection(head["source"], head["stages"], rows)


def check_source(selection: Selection, source: dict[str, Any], path: Path) -> None:
    """Raise ConfigError when a list was made for other clips."""
    if selection.source != source:
        raise ConfigError(
            f"{path} was made for {_text(selection.source)}, these are {_text(source)}, so its clip numbers refer to "
            "other clips; make the list again with `select`"
        )


def _entry(row: Row) -> dict[str, Any]:
    return {"clip": row.clip, "name": row.name, "kept": row.kept, **row.scores}


def _rows(lines: Iterator[str]) -> Iterator[Row]:
    for line in lines:
        entry = parse_json(line)
        row = Row(entry.pop("clip"), entry.pop("name"), entry.pop("kept"), entry)
        if type(row.clip) is not int or row.clip < 0 or type(row.kept) is not bool or not isinstance(row.name, str):
            raise ValueError(f"the line of clip {str(row.clip)[:20]} has values of other types")
        yield row


def _text(source: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in source.items())
