"""States in the format of torch.distributed.checkpoint, which earlier versions wrote. They are only read.

The index `.metadata` of that format is a pickle. Only its own classes are taken from it, so that no code in it runs.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load as read_state

INDEX = ".metadata"
_MODULES = frozenset(
    {
        "torch.distributed.checkpoint.metadata",
        "torch.distributed.checkpoint.filesystem",
        "torch.distributed.checkpoint.planner",
    }
)
_NAMES = frozenset(
    {
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch", "device"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("pathlib._local", "PosixPath"),
        ("pathlib._local", "WindowsPath"),
        ("pathlib", "Path"),
    }
)
_CLASSES = frozenset(
    {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING", "_StorageInfo"),
    }
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _NAMES or (module in _MODULES and name in _CLASSES):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index contains {module}.{name}, which is no part of a state")


class _Reader(FileSystemReader):
    def read_metadata(self, *_arguments: Any, **_options: Any) -> Metadata:
        return _metadata(Path(self.path))


def is_old(state: Path) -> bool:
    return (state / INDEX).is_file() and not any(state.glob("tensors-*.safetensors"))


def names(state: Path) -> set[str]:
    """The names of the tensors in a state. ValueError for an index that is not of this format."""
    return set(_metadata(state).state_dict_metadata)


def load(state: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place from the entries with the same names. ValueError for a damaged state."""
    _metadata(state)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        try:
            read_state(dict(tensors), storage_reader=_Reader(state), no_dist=True)
        except CheckpointException as error:  # around whatever torch's readers raise, with a traceback as its text
            raise ValueError(f"its tensors cannot be read: {str(error).strip().splitlines()[-1][:200]}") from error


def _metadata(state: Path) -> Metadata:
    with (state / INDEX).open("rb") as file:
        try:
            content = _Unpickler(file).load()
        except Exception as error:
            raise ValueError(f"{INDEX} cannot be read: {str(error)[:200] or type(error).__name__}") from error
    if not isinstance(content, Metadata):
        raise ValueError(f"{INDEX} is no index of a state")
    return content
