"""Files of the networks for metrics. The user provides them by path; nothing is downloaded.

A file is TorchScript, a torch state dict, or safetensors. Pickles are loaded with weights_only. TorchScript is a
program: it runs its author's code, within the limits of TorchScript.
"""

import hashlib
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

TORCHSCRIPT, STATE_DICT = "TorchScript", "state dict"


class MetricError(ValueError):
    """A metric cannot be computed; the message is one sentence that names the input and what is needed."""


@dataclass(frozen=True)
class NetworkFile:
    """Description of a metric's network, for the report."""

    file: str
    sha256: str
    layout: str


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path | None, option: str, hint: str) -> Path:
    """The path, or MetricError if there is no such file. hint: which file is needed and where it comes from."""
    if path is None:
        raise MetricError(f"{option} is missing; give {hint}")
    if not path.is_file():
        raise MetricError(f"{option} {path}: there is no such file; give {hint}")
    return path


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive; a torch state dict is an archive without code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def open_network(
    path: Path, option: str, device: str, build: Callable[[dict[str, Tensor]], nn.Module]
) -> tuple[nn.Module, NetworkFile]:
    """Load a TorchScript file directly, or use `build` to make the network from the weights of any other file."""
    if is_torchscript(path):
        return load_torchscript(path, option, device), NetworkFile(str(path), sha256(path), TORCHSCRIPT)
    return build(load_weights(path, option)).to(device), NetworkFile(str(path), sha256(path), STATE_DICT)


def load_torchscript(path: Path, option: str, device: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # the common files are TorchScript, although it is deprecated
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, OSError) as error:
        raise MetricError(f"{option} {path} cannot be read ({_first_line(error)}); get the file again") from error


def run_torchscript(network: nn.Module, inputs: list[Tensor], file: str, kind: str, **options: bool) -> Tensor:
    """Rows of the network for inputs of any size, one at a time. MetricError when it does not accept the input."""
    try:
        # without its kernel compiler, which fails on some GPUs
        with torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]
            return torch.cat([network(x, **options) for x in inputs]).float().cpu()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise MetricError(f"{file} cannot be used as {kind} ({reason}); give another file") from error


def load_weights(path: Path, option: str) -> dict[str, Tensor]:
    """The tensors of a state dict by name, also if it is the entry `state_dict` of a checkpoint."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each file format raises other errors
        raise MetricError(f"{option} {path} cannot be read ({_first_line(error)}); get the file again") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    weights = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise MetricError(f"{option} {path} contains no weights; give a state dict or a TorchScript file")
    return weights


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path, option: str, kind: str) -> nn.Module:
    """Load the weights into the network. MetricError, naming the first difference, when they do not match."""
    state = network.state_dict()
    expected = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for name, value in expected.items():
        if name not in weights:
            raise MetricError(f"{option} {path} is not the right {kind}: {name} is missing; give its weights")
        if weights[name].shape != value.shape:
            raise MetricError(
                f"{option} {path} is not the right {kind}: {name} is {tuple(weights[name].shape)} instead of "
                f"{tuple(value.shape)}; give its weights"
            )
    foreign = sorted(name for name in weights if name not in state)
    if foreign:
        raise MetricError(f"{option} {path} is not the right {kind}: it also has {foreign[0]}; give its weights")
    network.load_state_dict({**state, **{name: weights[name] for name in expected}})
    return network.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
