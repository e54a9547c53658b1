"""Files of networks that metrics look through: the user's own, by path; nothing is downloaded.

A file is TorchScript, a state dict of torch, or safetensors. Pickles are opened with weights_only. TorchScript is a
program: it runs what its author wrote, within what TorchScript can do.
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

BLOCK = 1 << 20
TORCHSCRIPT, STATE_DICT = "TorchScript", "state dict"


class MetricError(ValueError):
    """A metric cannot be computed; the message is one sentence that names what was given and what would do."""


@dataclass(frozen=True)
class NetworkFile:
    """What a report says of the network of a metric."""

    file: str
    sha256: str
    layout: str


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: Path | None, option: str, what: str) -> Path:
    """The file, or MetricError: `what` says which file does, and where people have it from."""
    if path is None:
        raise MetricError(f"{option} is not given; give {what}")
    if not path.is_file():
        raise MetricError(f"{option} {path}: there is no such file; give {what}")
    return path


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive; a state dict of torch is such an archive without code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def opened(
    path: Path, option: str, device: str, built: Callable[[dict[str, Tensor]], nn.Module]
) -> tuple[nn.Module, NetworkFile]:
    """A TorchScript file as it is, or the network that `built` makes of the weights of any other."""
    if is_torchscript(path):
        return load_torchscript(path, option, device), NetworkFile(str(path), sha256(path), TORCHSCRIPT)
    return built(load_weights(path, option)).to(device), NetworkFile(str(path), sha256(path), STATE_DICT)


def load_torchscript(path: Path, option: str, device: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the files of the field are TorchScript all the same
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, OSError) as error:
        raise MetricError(f"{option} {path} cannot be read ({_first_line(error)}); get the file again") from error


def run_torchscript(network: nn.Module, inputs: list[Tensor], file: str, what: str, **options: bool) -> Tensor:
    """The network's rows of inputs of any sizes, one after another. MetricError when it takes no such input."""
    try:
        # without its compiler of kernels, which fails on some GPUs
        with torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]
            return torch.cat([network(x, **options) for x in inputs]).float().cpu()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise MetricError(f"{file} cannot be used as {what} ({reason})") from error


def load_weights(path: Path, option: str) -> dict[str, Tensor]:
    """The tensors of a state dict by name, also of a checkpoint that holds it as `state_dict`."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        told = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of file has errors of its own for what it is not
        raise MetricError(f"{option} {path} cannot be read ({_first_line(error)}); get the file again") from error
    told = told.get("state_dict", told) if isinstance(told, dict) else {}
    weights = {str(name).removeprefix("module."): value for name, value in told.items() if isinstance(value, Tensor)}
    if not weights:
        raise MetricError(f"{option} {path} holds no weights; give a state dict or a TorchScript file")
    return weights


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path, option: str, what: str) -> nn.Module:
    """Put the weights into the network. MetricError, naming the first difference, when they are of another."""
    own = network.state_dict()
    wanted = {name: value for name, value in own.items() if not name.endswith("num_batches_tracked")}
    for name, value in wanted.items():
        if name not in weights:
            raise MetricError(f"{option} {path} is no {what}: it has no {name}; give the weights of one")
        if weights[name].shape != value.shape:
            raise MetricError(
                f"{option} {path} is no {what} of this size: {name} is {tuple(weights[name].shape)}, "
                f"{tuple(value.shape)} is needed; give the weights of one"
            )
    foreign = sorted(name for name in weights if name not in own)
    if foreign:
        raise MetricError(f"{option} {path} is no {what}: it has {foreign[0]}, too; give the weights of one")
    network.load_state_dict({**own, **{name: weights[name] for name in wanted}})
    return network.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
