"""The registry of systems: what `train`, `doctor`, `ablate`, the previews and the documentation ask about a system.

A system of yours is added with `register`, before its first config is read. The entries of this package are at the end
of the module; the heavy modules of a system are imported when it is used for the first time.
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
        """The `SystemTask` of a config and the image model under it. Errors of the config come from here."""
        ...

    def preview(self, task: Any, base: Any, plan: Any, /) -> Callable[[int, dict[str, Any]], None] | None:
        """What is called after every step with the step and the average weights; None for no pictures."""
        ...

    def write(self, task: Any, average: dict[str, Any], path: Path, /) -> None:
        """Write the weight file."""
        ...


class Ablation(Protocol):
    """The module of an ablation in `ablations/`."""

    OPTIONS: tuple[str, ...]
    """The options of the verb `ablate` that not every ablation takes, and this one does."""
    Options: Any
    Budget: Any
    QUICK: Any

    def ablate(self, options: Any, /) -> dict[str, Any]:
        """Train or draw, score, write the tables into `options.out`."""
        ...


@dataclass(frozen=True, kw_only=True)
class System:
    """A system that can be trained."""

    name: str
    """The word `system` of its configs."""
    plan: type[BasePlan]
    """Its config."""
    trainer: Callable[[], Trainer]
    """Imports its trainer."""
    ablations: Mapping[str, Callable[[], Ablation]] = field(default_factory=dict)
    """Imports its ablations, by the words of the verb `ablate`."""


_SYSTEMS: dict[str, System] = {}


def register(system: System) -> None:
    """Make a system known. ValueError when its name, or that of an ablation, is taken."""
    taken = {*_SYSTEMS} & {system.name} | {*ablations()} & {*system.ablations}
    if taken:
        raise ValueError(f"there is already a system or an ablation called {min(taken)!r}; choose another name")
    _SYSTEMS[system.name] = system


def unregister(name: str) -> None:
    """Forget a system that `register` made known."""
    _SYSTEMS.pop(name, None)


def names() -> tuple[str, ...]:
    """The systems, in the order of their registration."""
    return tuple(_SYSTEMS)


def get(name: str) -> System:
    """The system of that name. KeyError for one that is not known."""
    return _SYSTEMS[name]


def ablations() -> dict[str, Callable[[], Ablation]]:
    """The ablations of all systems, by the words of the verb `ablate`."""
    return {name: load for system in _SYSTEMS.values() for name, load in system.ablations.items()}


def read(path: Path, changes: Sequence[str] = (), *, out: Path | None = None) -> Any:
    """The plan of a config file, as `plans.config.read` makes it, of any system that is known."""
    return config.read(path, {name: system.plan for name, system in _SYSTEMS.items()}, changes, out=out)


def prepare(plan: BasePlan, tokenizer: Path) -> tuple[Any, Any]:
    """The task of a config of any system, and the image model under it."""
    return get(plan.system).trainer().prepare(plan, tokenizer)


def train(plan: BasePlan, tokenizer: Path, *, allow: Collection[str] = ()) -> Path:
    """Train as a config says and write the weight file; what is frozen is compared bit for bit.

    ChangedRun when the folder holds a run of other settings; `allow` names those that may differ.
    """
    from .systems.learning import learn

    trainer = get(plan.system).trainer()
    task, base = trainer.prepare(plan, tokenizer)
    show = trainer.preview(task, base, plan)
    return learn(task, plan.train, trainer.FILE, write=trainer.write, show=show, allow=allow)


def _module(name: str) -> Callable[[], Any]:
    """Imports a module of this package when it is asked for."""
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
