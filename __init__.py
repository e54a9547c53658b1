"""StillMotion: still-image diffusion models become video models inside ComfyUI.

ComfyUI imports this package by path, under a name of its own; nothing is imported here until it asks for the nodes.
"""

WEB_DIRECTORY = "./web"
PYTHON = (3, 11)  # the oldest versions that the nodes are tested with; pyproject.toml has the same
COMFYUI = (0, 30, 0)


async def comfy_entrypoint():
    """The extension. RuntimeError with one sentence for the log where Python or ComfyUI is too old."""
    _check_versions()
    from .nodes import StillMotionExtension

    return StillMotionExtension()


def _check_versions() -> None:
    import re
    import sys

    if tuple(sys.version_info[:2]) < PYTHON:
        raise RuntimeError(
            f"StillMotion needs Python {_text(PYTHON)} or newer, and ComfyUI runs on Python "
            f"{_text(sys.version_info[:3])}: run ComfyUI with a newer Python, or remove StillMotion from custom_nodes."
        )
    import comfyui_version

    version = str(comfyui_version.__version__)
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    if numbers and tuple(map(int, numbers.groups())) < COMFYUI:
        raise RuntimeError(
            f"StillMotion needs ComfyUI {_text(COMFYUI)} or newer, and this is ComfyUI {version}: update ComfyUI, or "
            "remove StillMotion from custom_nodes."
        )


def _text(version: tuple) -> str:
    return ".".join(map(str, version))
