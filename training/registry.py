"""The registry of systems, which `train`, `doctor`, `ablate`, the previews and the documentation use.

Add your own system with `register`, before its first config is read. The entries of this package are at the end
of the module; the modules of a system are imported when it is used for the first time.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from .plans import config
from .plans.artv import ArtvPlan
from .plans.common import BasePlan
from .plans.dreamvideo import DreamVideoPlan
from .plans.harivo import HarivoPlan
from .plans.vidrd import VidrdPlan
from .plans.vidrd_decoder import DecoderPlan

find = config.find


class Trainer(Protocol):
    """The module of a system in `systems/`."""

    FILE: str
    """The name of the weight file in the output folder."""

    def prepare(self, plan: Any, tokenizer: Path, /) -> tuple[Any, Any]:
        """The `SystemTask` of a config and its image model. Reports errors of the config."""
        ...

    def preview(self, task: Any, base: Any, plan: Any, /) -> Callable[[int, dict[str, Any]], None] | None:
        """A function that is called after every step with the step and the averaged weights; None for no previews."""
        ...

    def write(self, task: Any, average: dict[str, Any], path: Path, /) -> None:
        """Write the weight file."""
        ...


class Ablation(Protocol):
    """The module of an ablation in `ablations/`."""

    OPTIONS: tuple[str, ...]
    """The optional options of the verb `ablate` that this ablation supports."""
    Options: Any
    Budget: Any
    QUICK: Any

    def ablate(self, options: Any, /) -> dict[str, Any]:
        """Train or sample, score, and write the tables into `options.out`."""
        ...


@dataclass(frozen=True, kw_only=True)
class System:
    """A system that can be trained."""

    name: str
    """The value of `system` in its configs."""
    plan: type[BasePlan]
    """The class of its configs."""
    trainer: Callable[[], Trainer]
    """A function that imports its trainer."""
    ablations: Mapping[str, Callable[[], Ablation]] = field(default_factory=dict)
    """Functions that import its ablations, by their names in the verb `ablate`."""


_SYSTEMS: dict[str, System] = {}


def register(system: System) -> None:
    """Add a system. Raises ValueError when its name, or that of one of its ablations, exists already."""
    duplicates = {*_SYSTEMS} & {system.name} | {*ablations()} & {*system.ablations}
    if duplicates:
        raise ValueError(f"there is already a system or an ablation called {min(duplicates)!r}; choose another name")
    _SYSTEMS[system.name] = system


def unregister(name: str) -> None:
    """Remove a system that was added with `register`."""
    _SYSTEMS.pop(name, None)


def names() -> tuple[str, ...]:
    """The systems, in the order of their registration."""
    return tuple(_SYSTEMS)


def get(name: str) -> System:
    """The system of that name. Raises KeyError for an unknown name."""
    return _SYSTEMS[name]


def ablations() -> dict[str, Callable[[], Ablation]]:
    """The ablations of all systems, by their names in the verb `ablate`."""
    return {name: load for system in _SYSTEMS.values() for name, load in system.ablations.items()}


def read(path: Path, changes: Sequence[str] = (), *, out: Path | None = None) -> Any:
    """The plan of a config file of any registered system, read by `plans.config.read`."""
    return config.read(path, {name: system.plan for name, system in _SYSTEMS.items()}, changes, out=out)


def prepare(plan: BasePlan, tokenizer: Path) -> tuple[Any, Any]:
    """The task of a config of any registered system, and its image model."""
    return get(plan.system).trainer().prepare(plan, tokenizer)


def train(plan: BasePlan, tokenizer: Path, *, allow: Collection[str] = ()) -> Path:
    """Train with a config and write the weight file; frozen weights are checked bit for bit.

    Raises ChangedRun when the folder holds a run with other settings; `allow` names those that may differ.
    """
    from .systems.learning import learn

    trainer = get(plan.system).trainer()
    task, base = trainer.prepare(plan, tokenizer)
    show = trainer.preview(task, base, plan)
    return learn(task, plan.train, trainer.FILE, write=trainer.write, show=show, allow=allow)


def _module(name: str) -> Callable[[], Any]:
    """A function that imports a module of this package."""
    return lambda: import_module(name, __package__)


register(
    System(
        name="harivo",
        plan=HarivoPlan,
        trainer=_module(".systems.harivo"),
        ablations={"harivo": _module(".ablations.harivo")},
    )
)
register(
    System(
        name="vidrd",
        plan=VidrdPlan,
        trainer=_module(".systems.vidrd"),
        ablations={"vidrd": _module(".ablations.vidrd"), "pseudo": _module(".ablations.pseudo")},
    )
)
register(System(name="vidrd_decoder", plan=DecoderPlan, trainer=_module(".systems.vidrd_decoder")))
register(
    System(
        name="artv",
        plan=ArtvPlan,
        trainer=_module(".systems.artv"),
        ablations={"artv": _module(".ablations.artv")},
    )
)
register(
    System(
        name="dreamvideo",
        plan=DreamVideoPlan,
        trainer=_module(".systems.dreamvideo"),
        ablations={"dreamvideo": _module(".ablations.dreamvideo")},
    )
)
