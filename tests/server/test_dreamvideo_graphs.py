"""The graphs of DreamVideo on a real server, with a file of random weights: each part has an effect."""

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from devkit import dreamvideo, workflow
from devkit.client import Client
from devkit.server import Server
from PIL import Image

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig

pytestmark = pytest.mark.server

NAME = "random_dreamvideo.safetensors"
SIZES = {"block_channels": (64, 128, 128), "attention": (False, True, True), "heads": (4, 4, 4)}
SIZES |= {"layers_per_block": 1, "context_dim": 128}
BRANCH = RetentionConfig(**SIZES, linear_projection=False, hint_channels=(16, 32, 64))
LAYERS = SIZES | {"spatial": False, "conv_layers": 1, "embedding": "branch"}
FRAMES = dict.fromkeys(dreamvideo.GRAPHS, 16) | {"dreamvideo_stages": 24}
FRAMES |= {"dreamvideo_text_image_to_video": 8, "dreamvideo_text_to_video": 8}


@pytest.fixture(scope="module")
def file(server: Server) -> Iterator[str]:
    """The name of a DreamVideo file for the pocket model in the folder of the user's models."""
    config = DreamVideoConfig(branch=BRANCH, layers=LAYERS, motion=True)
    torch.manual_seed(0)
    model = dreamvideo_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    path = server.base / "models" / "stillmotion" / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, system="dreamvideo", config=config.to_dict(), weights=model.state_dict())
    yield NAME
    path.unlink()


def node_of(prompt: dict, class_type: str) -> tuple[str, dict]:
    (pair,) = [(number, node) for number, node in prompt.items() if node["class_type"] == class_type]
    return pair


def graph(name: str, file: str, steps: int = 3) -> dict:
    """A graph with this file instead of the bundled one, and few steps."""
    prompt = json.loads(json.dumps(dreamvideo.GRAPHS[name]()).replace(dreamvideo.FILE, file))
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = steps
    return prompt


def video(client: Client, prompt: dict, folder: Path) -> np.ndarray:
    """The frames (f, h, w, 3)."""
    (item,) = client.run(prompt).check().results()
    with av.open(str(client.fetch(item, folder / item["filename"]))) as read:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in read.decode(video=0)]).astype(int)


@pytest.mark.parametrize("name", dreamvideo.GRAPHS)
def test_every_graph_makes_its_video(client: Client, file: str, tmp_path: Path, name: str):
    frames = video(client, graph(name, file, steps=2), tmp_path)
    assert frames.shape == (FRAMES[name], 512, 512, 3)
    assert frames.std() > 5


def without_reuse(prompt: dict) -> None:
    node_of(prompt, "StillMotion_ReuseAndDiffuse")[1]["inputs"] |= {"overlap": 0, "recycle": 0, "staged_guidance": 0}


def without_retention(prompt: dict) -> None:
    node_of(prompt, "StillMotion_ApplyImageRetention")[1]["inputs"]["strength"] = 0


def without_gradient(prompt: dict) -> None:
    number, node = node_of(prompt, "StillMotion_MitigatingGradient")
    for other in prompt.values():
        if other["inputs"].get("model") == [number, 0]:
            other["inputs"]["model"] = node["inputs"]["model"]


def without_control(prompt: dict) -> None:
    """The ControlNet and its limitation to frames are bypassed."""
    _, retention = node_of(prompt, "StillMotion_ApplyImageRetention")
    _, applied = node_of(prompt, "ControlNetApplyAdvanced")
    retention["inputs"] |= {name: applied["inputs"][name] for name in ("positive", "negative")}


def test_each_part_of_the_combination_acts(client: Client, file: str, tmp_path: Path):
    """Disabling one part changes the video. Without reuse of the previous clip, the first clip stays the same."""
    whole = video(client, graph("dreamvideo_combination_pocket", file), tmp_path / "whole")
    for off in (without_reuse, without_retention, without_gradient, without_control):
        prompt = graph("dreamvideo_combination_pocket", file)
        off(prompt)
        frames = video(client, prompt, tmp_path / off.__name__)
        change = np.abs(frames - whole).mean((1, 2, 3))
        assert change[8:].max() > 1, (off.__name__, change)
        if off is without_reuse:
            assert change[:8].max() < 1
        else:
            assert change[:8].max() > 1, (off.__name__, change)


@pytest.fixture
def picture(client: Client, tmp_path: Path) -> np.ndarray:
    """The image of the graphs, saved by ComfyUI: (64, 64, 3) bytes."""
    parts = dreamvideo.Parts()
    image = parts.image()
    parts.add("SaveImage", "Save Image", images=image, filename_prefix="drawn")
    (item,) = client.run(workflow.up_to(parts.graph.nodes, "SaveImage")).check().results()
    with Image.open(client.fetch(item, tmp_path / "drawn" / item["filename"])) as read:
        return np.array(read.convert("RGB"))


def place(frame: np.ndarray) -> np.ndarray:
    """Row and column of the green square in a frame."""
    return np.argwhere(frame[..., 1] - np.maximum(frame[..., 0], frame[..., 2]) > 60).mean(0)


def test_videos_of_the_bundled_model_begin_with_the_image_and_move(client: Client, picture: np.ndarray, tmp_path: Path):
    """With text and without; with text alone, the square starts elsewhere."""

    def clip(way: str) -> np.ndarray:
        name = f"dreamvideo_{way}_to_video"
        return video(client, graph(name, dreamvideo.FILE, steps=12), tmp_path / way)[:, 4::8, 4::8]

    image = picture.astype(int)
    both, image_only, text_only = (clip(way) for way in ("text_image", "image", "text"))
    assert np.square(both[0] - image).mean() < 0.3 * np.square(text_only[0] - image).mean()
    assert place(both[-1])[1] < place(both[0])[1] - 5  # it moves left, as the text says
    for frames in (both, image_only):
        assert np.median(np.abs(frames[0] - image)) < 25  # error of the background; night or white would differ by 80
        assert np.abs(place(frames[0]) - place(image)).max() < 3
    assert np.abs(place(text_only[0]) - place(image)).max() > 5


def test_the_node_gives_the_bundled_picture_as_it_is(picture: np.ndarray, root: Path):
    with Image.open(root / "pocket" / "pictures" / f"{dreamvideo.PROMPT}.png") as stored:
        assert (picture == np.array(stored)).all()
