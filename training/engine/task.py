"""What a training trains: the interface between a system and the loop, the doctor and the previews."""

from torch import Tensor, nn


class Task(nn.Module):
    """What is trained. `forward(samples)` returns {"loss": scalar, other figures...}; frozen parts need no gradient.

    The loss is a mean over the samples, so that it does not depend on how they are shared out.
    """

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """Hashes of data and base, and settings: a resumed run must find them unchanged."""
        return {}

    def extras(self) -> dict[str, Tensor]:
        """State besides the trained weights, the same on every process. A resume writes into these tensors."""
        return {}

    def stepped(self, counted: bool) -> None:
        """Called by every process after each step, to change `extras`. `counted`: the step was not skipped."""


class SystemTask(Task):
    """The task of a registered system: what `train` and `doctor` ask for beside the loss."""

    def base_network(self) -> nn.Module:
        """The network of the image model that the trained parts are put into."""
        raise NotImplementedError

    def frozen_hash(self) -> str:
        """A hash of everything that must not change during the training."""
        raise NotImplementedError

    def draw(self, samples: list[int]) -> object:
        """The samples as the model takes them."""
        raise NotImplementedError

    def data_summary(self) -> str:
        """One line about the data: how many clips, of how many frames, of which size."""
        raise NotImplementedError

    def first_sample(self) -> int:
        """The first sample at which every term of the loss counts."""
        return 0

    def part_of(self, parameter: str) -> str:
        """The trained part that a parameter of this name belongs to, as the doctor names it."""
        return parameter.partition(".")[0]


class WeightedTask(SystemTask):
    """A task whose loss is a weighted sum of terms, which the doctor measures one by one."""

    weights: dict[str, float]
    """Weight of each term; a term whose weight is 0 is not computed. The first one always counts."""

    def terms(self, samples: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms without their weights, each the mean over the samples, and figures to log."""
        raise NotImplementedError

    def warm_up(self, samples: list[int]) -> None:
        """Fill what the steps before leave for these samples, such as a queue of features."""
