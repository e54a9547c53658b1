"""AnimateDiff-Evolved, from a folder of the user's, for comparisons in the same process. Nothing of it is bundled."""

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from ...model_patches.files import write_tensors

LOADER, FILE = "ADE_AnimateDiffLoaderGen1", "random.safetensors"


def load_pack(folder: Path) -> Any:
    """The pack as a module. ValueError when the folder is not that pack."""
    name = "animatediff_evolved_of_the_user"
    if name in sys.modules:
        return sys.modules[name]
    source = folder / "__init__.py"
    if not (folder / "animatediff").is_dir() or not source.is_file():
        raise ValueError(f"{folder} is not a folder of ComfyUI-AnimateDiff-Evolved: it has no animatediff/")
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def evolved_motion(folder: Path, model: Any, weights: dict[str, Tensor]) -> Any:
    """A clone of a MODEL with the motion model of these weights, by the pack's simplest loader node.

    ComfyUI's base directory becomes a temporary folder, because the pack makes folders beside ComfyUI's models. Call it
    before anything imports ComfyUI's `folder_paths`.
    """
    from comfy.cli_args import args

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        if "folder_paths" not in sys.modules:
            args.base_directory = base
        import folder_paths

        pack = load_pack(folder)
        folder_paths.add_model_folder_path("animatediff_models", base)
        write_tensors(weights, Path(base) / FILE, {})
        node = pack.NODE_CLASS_MAPPINGS[LOADER]()
        return getattr(node, node.FUNCTION)(model, FILE, "use existing")[0]
