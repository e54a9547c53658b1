"""What a training trains: the interface between a system and the loop, the doctor and the previews."""

from torch import Tensor, nn


class Task(nn.Module):
    """What is trained. `forward(samples)` returns {"loss": scalar, other figures...}; frozen parts need no gradient.

    The loss is a mean over the samples, so that it does not depend on how they are divided among processes.
    """

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """Hashes of the data and the base, and settings; they must not change when the run resumes."""
        return {}

    def extras(self) -> dict[str, Tensor]:
        """State besides the trained weights, equal on all processes. Resuming writes into these tensors."""
        return {}

    def after_step(self, applied: bool) -> None:
        """Called by every process after each step; update `extras` here. `applied`: the step was not skipped."""


class SystemTask(Task):
    """The task of a registered system, with everything that `train` and `doctor` need besides the loss."""

    def base_network(self) -> nn.Module:
        """The network of the image model to which the trained parts are attached."""
        raise NotImplementedError

    def frozen_hash(self) -> str:
        """A hash of everything that must not change during the training."""
        raise NotImplementedError

    def draw(self, samples: list[int]) -> object:
        """The inputs of the model for the samples."""
        raise NotImplementedError

    def data_summary(self) -> str:
        """One line about the data: the number of clips, their frames and their size."""
        raise NotImplementedError

    def first_sample(self) -> int:
        """The first sample for which all terms of the loss are active."""
        return 0

    def part_of(self, parameter: str) -> str:
        """The name of the trained part to which a parameter belongs, for the report of `doctor`."""
        return parameter.partition(".")[0]


class WeightedTask(SystemTask):
    """A task whose loss is a weighted sum of terms, which `doctor` measures one by one."""

    weights: dict[str, float]
    """Weight of each term; a term with weight 0 is not computed, except for the first term."""

    def terms(self, samples: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms without their weights, each as a mean over the samples, and figures for the log."""
        raise NotImplementedError

    def warm_up(self, samples: list[int]) -> None:
        """Fill the state that earlier steps would have filled, such as a queue of features."""
