"""Raw readers of weight files: the header and the content of a file, within its own size.

Whatever a file holds, reading ends with its content or with a CheckpointError: the memory is at most that of the file
and 64 MiB, pickled code is never run, and `look` is called often enough to stop within half a second.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .layouts import CheckpointError

PICKLES = (".ckpt", ".pt", ".bin", ".pth")
SUFFIXES = (".safetensors", *PICKLES)
MAX_HEADER, MAX_KEYS, SPARE = 2**24, 20_000, 2**26  # bytes; weights of a file; bytes beside those of the file
PART = 2**22  # values that are tested at once
MAX_DEPTH = 6  # of tables in the content of a pickle
Look = Callable[[], None]  # may raise an exception to stop

# the first bytes of what is often saved in the place of a file
_PAGES = (
    (b"version https://git-lfs", "a Git LFS pointer, which only names the file"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b'{"error', "the error message of a download"),
)


def read_file(path: Path, look: Look = lambda: None) -> tuple[dict[str, str], dict[str, Any]]:
    """Header and content of a weight file, unchanged. CheckpointError for any other file."""
    if not path.is_file():
        where = "" if path.parent.is_dir() else f" (nor does the folder {path.parent})"
        raise CheckpointError(f"{path} does not exist{where}; put the file there or choose another")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path.name}: weights are read from {', '.join(SUFFIXES)}, not from {path.suffix or 'this'}"
        )
    try:
        _refuse_pages(path)
        if suffix == ".safetensors":
            return _read_safetensors(path, look)
        content = _read_pickle(path)
        check_sizes(content, path, look)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error}); check its permissions and the disk") from error
    return {}, content


def _refuse_pages(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    for page, name in _PAGES:
        if start.startswith(page):
            raise CheckpointError(f"{path.name} is {name}, and no weight file; download the file itself again")


def _read_safetensors(path: Path, look: Look) -> tuple[dict[str, str], dict[str, Tensor]]:
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            header, tensors = dict(file.metadata() or {}), {}
            for key in _within(list(file.keys()), path, look):
                tensors[key] = file.get_tensor(key)
            return header, tensors
    except (SafetensorError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path.name} is truncated or no safetensors file ({error}); download or copy it again"
        ) from error


def _check_header(path: Path) -> None:
    """CheckpointError for a header so long that reading it would block: real ones have less than a megabyte."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if MAX_HEADER < size <= path.stat().st_size:
        raise CheckpointError(
            f"{path.name} has a header of {size:,} bytes, and weight files have at most {MAX_HEADER:,}; get it again"
        )


def _within(keys: list[str], path: Path, look: Look) -> Iterator[str]:
    """The keys, with a look before each. CheckpointError for more than any model has."""
    if len(keys) > MAX_KEYS:
        raise CheckpointError(f"{path.name} has {len(keys):,} weights; a file can have at most {MAX_KEYS:,}")
    for key in keys:
        look()
        yield key


def _read_pickle(path: Path) -> dict[str, Any]:
    damaged = f"{path.name} is truncated or no weight file"
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds more than weights (pickled code is never run) or is no weight file; "
            "convert it to safetensors on a machine that trusts it"
        ) from error
    except Exception as error:
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise CheckpointError(f"{damaged} ({reason}); download or copy it again") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not named weights")
    return dict(content)


def _check_archive(path: Path) -> None:
    """CheckpointError for a file that grows when it is unpacked. torch does not compress its files."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size + SPARE:
            raise CheckpointError(
                f"{path.name} would take {size:,} bytes of memory, many times its own size; get the file again, or "
                "convert it to safetensors on a machine that trusts it"
            )


def check_sizes(content: Mapping[Any, Any], path: Path, look: Look = lambda: None) -> None:
    """CheckpointError for more tensors than any model has, or tensors that are larger than the bytes they have."""
    total = 0
    for i, (name, tensor) in enumerate(_tensors(content)):
        look()
        size = tensor.numel() * tensor.element_size()
        total += size
        if i >= MAX_KEYS:
            raise CheckpointError(f"{path.name} has more than {MAX_KEYS:,} weights, which no model has; get it again")
        # a table that several names share counts for each of them
        if size > _bytes(tensor) or total > 2 * path.stat().st_size + SPARE:
            raise CheckpointError(
                f"{path.name}: {name[:150]} would take {size:,} bytes of memory, more than the file has for it; the "
                "file is damaged or was made to fill the memory: get it again"
            )


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() if tensor.layout == torch.strided else 0


def _tensors(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors in tables within tables, with their names."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping) and depth < MAX_DEPTH:
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key), depth + 1)


def check_values(weights: Mapping[str, Tensor], source: str, whole: frozenset[str], look: Look = lambda: None) -> None:
    """CheckpointError unless all weights are finite floating-point numbers. whole: names of integer tables."""
    other = [f"{k} ({str(v.dtype).removeprefix('torch.')})" for k, v in weights.items() if not _is_float(k, v, whole)]
    if other:
        raise CheckpointError(
            f"{source} has {len(other)} weights that are no floating-point numbers, first {other[0][:200]}; quantised "
            "or damaged files cannot be used: get the file with float16 or float32 weights"
        )
    broken = [k for k, v in weights.items() if v.is_floating_point() and not _finite(v, look)]
    if broken:
        raise CheckpointError(
            f"{source} has NaN or infinite values in {len(broken)} of its weights, first {broken[0][:200]}; "
            "the file is damaged or its training diverged, use another"
        )


def _is_float(name: str, weight: Tensor, whole: frozenset[str]) -> bool:
    return weight.is_floating_point() or (name in whole and weight.dtype in (torch.int32, torch.int64))


def _finite(weight: Tensor, look: Look) -> bool:
    for part in weight.flatten().split(PART):
        look()
        # torch cannot test 8-bit floats
        if not bool(torch.isfinite(part.float() if part.element_size() == 1 else part).all()):
            return False
    return True
