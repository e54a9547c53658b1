"""The graphs of ART-V on a real server, with the bundled model: from an image, resumed, and with a story."""

from pathlib import Path

import numpy as np
import pytest
from devkit import workflow
from devkit.client import Client

from .test_dreamvideo_graphs import node_of, video

pytestmark = pytest.mark.server


def graph(name: str, frames: int) -> dict:
    """A bundled graph with two steps for each frame."""
    prompt = workflow.adapt(workflow.load(name), frames=frames)
    node_of(prompt, "StillMotion_AutoregressiveVideo")[1]["inputs"]["steps"] = 2
    return prompt


def test_a_video_begins_with_the_picture_and_can_be_made_longer(client: Client, tmp_path: Path):
    short = video(client, graph("artv_text_image_to_video", 3), tmp_path / "short")
    assert short.shape == (3, 512, 512, 3)
    green = short[0, 250, 310]  # inside the square
    assert green[1] > green[0] + 50
    assert green[1] > green[2] + 50
    longer = video(client, graph("artv_text_image_to_video", 5), tmp_path / "longer")
    assert len(longer) == 5
    assert np.abs(longer[:3] - short).mean() < 1  # H.264 of the same frames


def test_a_story_changes_with_its_later_prompts_only(client: Client, tmp_path: Path):
    def story(*texts: str) -> np.ndarray:
        prompt = graph("artv_story", 1)
        node_of(prompt, "StillMotion_Story")[1]["inputs"]["text"] = "\n".join(f"2: {text}" for text in texts)
        return video(client, prompt, tmp_path / str(len(list(tmp_path.iterdir()))))

    first = story("a green square moving left on a gray background", "a green square moving up on a gray background")
    other = story("a green square moving left on a gray background", "a red circle moving right at sunset")
    assert len(first) == len(other) == 4
    change = np.abs(first - other).mean((1, 2, 3))
    assert change[:2].max() < 1
    assert change[2:].min() > 1
