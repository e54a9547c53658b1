"""Which clips of a folder a training takes: a list of scored clips as JSON lines, written by the verb `select`.

The first line says where the clips are from and which stages have looked at them, with every setting that a score
depends on. Then one line a clip, in the order of the folder:

    {"format": "stillmotion/selection/1", "source": {...}, "stages": [{"stage": "motion", "low": 1.0, ...}]}
    {"clip": 0, "name": "dog.mp4 0", "kept": true, "motion": 3.2}

A later stage looks at the kept ones alone and can only drop more.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...model_patches.files import replacing
from ..plans.errors import ConfigError

FORMAT = "stillmotion/selection/1"


@dataclass(frozen=True)
class Row:
    """One clip: its number in the folder, what it is called, whether it is kept, its scores by name."""

    clip: int
    name: str
    kept: bool = True
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """A list. `source` names the folder's content: {"latents": digest} or {"videos": how they are cut}."""

    source: dict[str, Any]
    stages: list[dict[str, Any]]
    rows: list[Row]

    @property
    def kept(self) -> frozenset[int]:
        return frozenset(row.clip for row in self.rows if row.kept)

    def after(self, stage: dict[str, Any], rows: list[Row]) -> "Selection":
        """The list with one more stage; `rows` replace those of the same clips."""
        changed = {row.clip: row for row in rows}
        return replace(self, stages=[*self.stages, stage], rows=[changed.get(row.clip, row) for row in self.rows])

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        head = {"format": FORMAT, "source": self.source, "stages": self.stages}
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
            for line in (head, *map(_entry, self.rows)):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def load(path: Path) -> Selection:
    """ConfigError when it is not there or no such list."""
    if not path.is_file():
        raise ConfigError(f"there is no list {path}; make one with: python -m stillmotion.training select motion")
    with path.open(encoding="utf-8") as file:
        try:
            head = json.loads(next(file, "{}"))
            rows = list(_rows(file)) if head.get("format") == FORMAT else None
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is broken ({error}); make it again with `select`") from error
    if rows is None:
        raise ConfigError(f"{path} is no list of `select` (its first line has no format {FORMAT})")
    return Selection(head["source"], head["stages"], rows)


def check_source(selection: Selection, source: dict[str, Any], path: Path) -> None:
    """ConfigError when a list belongs to other clips."""
    if selection.source != source:
        raise ConfigError(
            f"{path} was made for {_told(selection.source)}, these are {_told(source)}: the numbers of its clips mean "
            "other clips here. Make the list again with `select`"
        )


def _entry(row: Row) -> dict[str, Any]:
    return {"clip": row.clip, "name": row.name, "kept": row.kept, **row.scores}


def _rows(lines: Iterator[str]) -> Iterator[Row]:
    for line in lines:
        entry = json.loads(line)
        yield Row(entry.pop("clip"), entry.pop("name"), entry.pop("kept"), entry)


def _told(source: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in source.items())
