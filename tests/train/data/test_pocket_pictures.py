"""The bundled pictures of the Pocket Picture node are what the pocket's data set draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.training.data import sprites
from stillmotion.training.data.sprites import Clip, Sprite

FOLDER = Path(__file__).resolve().parents[3] / "pocket" / "pictures"


def clip(colour: str, shape: str, background: str, motion: str, start: tuple[float, float]) -> Clip:
    sprite = Sprite(colour, shape, 0.18)
    return Clip(sprite, background, motion, "normal", "medium", start=start, phase=0.3, shade=0.0)


CLIPS = [
    clip("green", "square", "gray", "left", (39.5 / 64, 32.5 / 64)),
    clip("yellow", "ring", "sunset", "right", (0.3, 0.5)),
    clip("red", "circle", "white", "down", (0.5, 0.3)),
    clip("blue", "heart", "gray", "up", (0.5, 0.7)),
    clip("red", "triangle", "night", "right", (0.3, 0.55)),
    clip("cyan", "star", "night", "up", (0.5, 0.7)),
    clip("pink", "heart", "field", "circling", (0.5, 0.5)),
    clip("yellow", "star", "white", "still", (0.5, 0.5)),
]


def render_bytes(scene: Clip) -> np.ndarray:
    """The first frame in bytes: (64, 64, 3)."""
    (frame,) = sprites.render(scene, [0.0])
    return frame.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_there_is_one_picture_of_each_clip(request: pytest.FixtureRequest):
    if request.config.getoption("--update-golden"):
        FOLDER.mkdir(exist_ok=True)
        for scene in CLIPS:
            Image.fromarray(render_bytes(scene)).save(FOLDER / f"{sprites.caption(scene)}.png", optimize=True)
    assert {path.stem for path in FOLDER.iterdir()} == {sprites.caption(scene) for scene in CLIPS}


@pytest.mark.parametrize("scene", CLIPS, ids=sprites.caption)
def test_a_picture_is_what_the_data_set_draws(scene: Clip):
    with Image.open(FOLDER / f"{sprites.caption(scene)}.png") as image:
        stored = np.array(image)
    assert np.abs(stored.astype(int) - render_bytes(scene)).max() <= 1  # other processors round otherwise


@pytest.mark.parametrize("scene", CLIPS, ids=sprites.caption)
def test_no_training_has_seen_the_clip_and_it_stays_inside_the_picture(scene: Clip):
    assert scene.held_out
    for time in sprites.frame_times(16):
        assert all(scene.sprite.radius <= place <= 1 - scene.sprite.radius for place in sprites.position(scene, time))
