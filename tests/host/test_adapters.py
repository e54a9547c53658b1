"""The bundled LoRA and ControlNet in clips of the bundled motion model, as users combine them in ComfyUI."""

import pytest
import torch

from stillmotion.benchmarks.bench_adapters import FRAMES, edges, overlap
from stillmotion.benchmarks.pocket_host import CONTROL, JUDGE, LORA, PocketHost
from stillmotion.evaluation.clips import read_clip
from stillmotion.evaluation.judge import load_judge
from stillmotion.training.data import sprites, styles

STEPS = 8
CLIP = sprites.Clip(
    sprite=sprites.Sprite("yellow", "square", 0.2),
    background="night",
    motion="right",
    speed="normal",
    size="medium",
    start=(0.3, 0.55),
    phase=0.0,
    shade=0.0,
)


@pytest.fixture(scope="module")
def host(comfy):
    return PocketHost()


@pytest.fixture(scope="module")
def judge():
    return load_judge(JUDGE)


@pytest.fixture(scope="module")
def truth():
    """Where the sprite is: (16, 1, 64, 64)."""
    return sprites.sprite_mask(CLIP, sprites.frame_times(FRAMES))


@pytest.fixture(scope="module")
def clip(host, truth):
    """clip(lora=False, frames="") -> 16 frames with a LoRA, with hints on those frames; each is drawn once."""
    drawn: dict[tuple[bool, str], torch.Tensor] = {}

    def draw(lora=False, frames=""):
        if (lora, frames) not in drawn:
            model = host.motion(frames=FRAMES)
            model = host.lora(model=model) if lora else model
            hints = edges(truth if frames == "all" else truth[[0, -1]])
            control = host.control(hints, frames, count=FRAMES) if frames else None
            latents = host.sample(model, [sprites.caption(CLIP)], frames=FRAMES, steps=STEPS, seed=3, control=control)
            drawn[lora, frames] = host.decode(latents)
        return drawn[lora, frames]

    return draw


def glows(frames):
    return styles.glow(frames, [CLIP.sprite.colour] * len(frames)) > styles.GLOWS


def test_the_stock_node_offers_the_lora_and_finds_every_key(comfy, host, caplog):
    import nodes as stock

    from stillmotion.nodes import pocket  # noqa: F401  it registers the folder

    assert LORA.name in stock.LoraLoaderModelOnly.INPUT_TYPES()["required"]["lora_name"][0]
    (model,) = stock.LoraLoaderModelOnly().load_lora_model_only(host.model, LORA.name, 1.0)
    keys = [key for key in host.model.model.state_dict() if key.startswith("diffusion_model.")]
    assert len(model.patches) > 20
    assert set(model.patches) <= set(keys)
    assert "lora key not loaded" not in caplog.text
    assert LORA.stat().st_size < 1_000_000
    assert CONTROL.stat().st_size < 7_000_000


def test_the_loras_style_is_in_every_frame_and_the_clip_still_moves(clip, judge):
    plain, styled = clip(), clip(lora=True)
    assert not glows(plain).any()
    assert glows(styled).float().mean() >= 0.9
    for frames in (plain, styled):
        reading = read_clip(judge, frames)
        assert reading.direction == "right"
        assert reading.distance > 0.2


def test_half_a_lora_glows_less(clip, host):
    half = host.lora(model=host.motion(frames=FRAMES), strength=0.5)
    frames = host.decode(host.sample(half, [sprites.caption(CLIP)], frames=FRAMES, steps=STEPS, seed=3))
    colours = [CLIP.sprite.colour] * FRAMES
    none, some, whole = (styles.glow(f, colours).mean() for f in (clip(), frames, clip(lora=True)))
    assert none < some < whole


def test_a_controlnet_on_all_frames_puts_the_sprite_where_its_edges_are(clip, judge, truth):
    without, everywhere = (overlap(judge, clip(frames=frames), truth) for frames in ("", "all"))
    assert everywhere.min() > 0.5
    assert everywhere.mean() > without.mean() + 0.2


def test_a_controlnet_on_the_first_and_last_frame_binds_these_more_than_the_others(clip, judge, truth):
    without, everywhere, some = (overlap(judge, clip(frames=frames), truth) for frames in ("", "all", "0, -1"))
    ends, between = some[[0, -1]], some[1:-1]
    assert ends.min() > 0.5
    assert ends.mean() > without[[0, -1]].mean() + 0.2
    assert ends.mean() > between.mean() + 0.05
    assert everywhere[1:-1].mean() > between.mean() + 0.05, "with hints of their own the others would obey"


def test_lora_motion_and_controlnet_together(clip, judge, truth):
    both = clip(lora=True, frames="0, -1")
    assert glows(both).float().mean() >= 0.9
    moved, free = overlap(judge, both, truth), overlap(judge, clip(lora=True), truth)
    assert moved[[0, -1]].mean() > free[[0, -1]].mean() + 0.2
    reading = read_clip(judge, both)
    assert reading.direction == "right"
    assert reading.distance > 0.2
