"""The bundled LoRA and ControlNet in clips of the bundled motion model, as users combine them in ComfyUI."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillmotion.benchmarks.common.pocket_host import CONTROL, JUDGE, LORA, PocketHost
from stillmotion.benchmarks.quality.bench_adapters import FRAMES, overlap
from stillmotion.evaluation.judges.judge import load_judge
from stillmotion.evaluation.scores.clips import read_clip
from stillmotion.training.data import sprites, styles
from stillmotion.training.pocket.control import edges

STEPS = 12
SEED = 0  # a seed whose clip moves right without hints
CLIP = sprites.Clip(
    sprite=sprites.Sprite("red", "square", 0.19),
    background="black",
    motion="right",
    speed="normal",
    size="medium",
    start=(0.28, 0.45),
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
def hints():
    """The sprite of the hints, 16 frames of (1, 64, 64): on a line, or through a dip that no prompt mentions.

    Both start and end lower than the clip without hints.
    """
    times = sprites.frame_times(FRAMES)
    places = [(sprites.position(CLIP, t)[0], 0.45 + 0.3 * math.sin(math.pi * t)) for t in times]
    resting = [replace(CLIP, motion="still", start=place) for place in places]
    dip = torch.cat([sprites.mask(clip, [0.0]) for clip in resting])
    return {"line": sprites.mask(CLIP, times), "dip": dip}


@pytest.fixture(scope="module")
def clip(host, hints):
    """clip(lora=False, path="", frames="all") -> 16 frames, with hints on `frames`; each clip is sampled once."""
    cache: dict[tuple[bool, str, str], torch.Tensor] = {}

    def draw(lora=False, path="", frames="all"):
        key = lora, path, frames
        if key not in cache:
            model = host.motion(frames=FRAMES)
            model = host.lora(model=model) if lora else model
            images = hints[path][[0, -1]] if path and frames != "all" else hints.get(path)
            control = host.control(edges(images), frames, count=FRAMES) if path else None
            latents = host.sample(
                model, [sprites.caption(CLIP)], frames=FRAMES, steps=STEPS, seed=SEED, control=control
            )
            cache[key] = host.decode(latents)
        return cache[key]

    return draw


def glows(frames):
    return styles.glow(frames, [CLIP.sprite.colour] * len(frames)) > styles.GLOWS


def test_the_lora_of_the_pocket_is_in_no_list_of_loras(comfy):
    """The list of a user's own LoRAs must not contain one that fits none of their models."""
    import folder_paths

    from stillmotion.nodes import StillMotionExtension  # noqa: F401  all that loading the pack registers

    assert LORA.name not in folder_paths.get_filename_list("loras")
    assert LORA.parent.resolve() not in [Path(place).resolve() for place in folder_paths.get_folder_paths("loras")]


def test_the_node_puts_it_on_as_the_stock_node_does(comfy, host, caplog):
    from stillmotion.nodes.pocket import LoadPocketLora

    model: Any = LoadPocketLora.execute(host.model, 0.5).args[0]
    reference = host.lora(strength=0.5)
    keys = [key for key in host.model.model.state_dict() if key.startswith("diffusion_model.")]
    assert len(model.patches) > 20
    assert set(model.patches) <= set(keys)
    assert "lora key not loaded" not in caplog.text
    assert model.patches.keys() == reference.patches.keys()
    assert {patch[0] for patches in model.patches.values() for patch in patches} == {0.5}
    assert host.model.patches == {}, "the input model is changed"
    assert LORA.stat().st_size < 1_000_000
    assert CONTROL.stat().st_size < 7_000_000


def test_the_node_refuses_another_model_and_names_it(tiny_sd):
    from stillmotion.nodes.pocket import LoadPocketLora

    with pytest.raises(ValueError, match=r"Pocket Stable Diffusion.*was given a model of the family SD15.*Load LoRA"):
        LoadPocketLora.execute(tiny_sd, 1.0)


def test_a_missing_bundled_file_is_named_with_a_remedy(comfy, host, monkeypatch, tmp_path):
    from stillmotion.nodes import pocket

    calls = {
        "POCKET": pocket.LoadPocket.execute,
        "CONTROL": pocket.LoadPocketControlNet.execute,
        "LORA": lambda: pocket.LoadPocketLora.execute(host.model, 1.0),
    }
    for name, load in calls.items():
        monkeypatch.setattr(pocket, name, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=rf"{name}\.safetensors is missing.*install StillMotion again"):
            load()


@pytest.mark.slow
def test_the_loras_style_is_in_every_frame_and_the_clip_still_moves(host, judge):
    """The LoRA reduces the distance (benchmarks/results.md); that of a still sprite is 0.02."""
    models = host.motion(frames=FRAMES), host.lora(model=host.motion(frames=FRAMES))
    settings = {"frames": FRAMES, "steps": STEPS, "seed": 1}
    plain, styled = (host.decode(host.sample(model, [sprites.caption(CLIP)], **settings)) for model in models)
    assert glows(plain).float().mean() <= 0.2
    assert glows(styled).all()
    ways = [read_clip(judge, frames) for frames in (plain, styled)]
    assert [way.direction for way in ways] == ["right", "right"]
    assert ways[0].distance > 0.2
    assert ways[1].distance > 0.1


@pytest.mark.slow
def test_half_a_lora_glows_less(clip, host):
    half = host.lora(model=host.motion(frames=FRAMES), strength=0.5)
    frames = host.decode(host.sample(half, [sprites.caption(CLIP)], frames=FRAMES, steps=STEPS, seed=SEED))
    colours = [CLIP.sprite.colour] * FRAMES
    none, some, whole = (styles.glow(f, colours).mean() for f in (clip(), frames, clip(lora=True)))
    assert none < some < whole


@pytest.mark.slow
def test_a_controlnet_on_all_frames_puts_the_sprite_where_its_edges_are(clip, judge, hints):
    without, controlled = (overlap(judge, frames, hints["line"]) for frames in (clip(), clip(path="line")))
    assert controlled.min() > 0.4
    assert controlled.mean() > without.mean() + 0.3


@pytest.mark.slow
def test_a_controlnet_on_the_first_and_last_frame_binds_these_and_not_the_others(clip, judge, hints):
    """The other frames follow the motion model's path between the hints, not the dip."""
    without, some = (overlap(judge, f, hints["dip"]) for f in (clip(), clip(path="dip", frames="0, -1")))
    assert some[[0, -1]].mean() > without[[0, -1]].mean() + 0.3
    assert some[[0, -1]].mean() > some[1:-1].mean() + 0.3


@pytest.mark.slow
def test_lora_motion_and_controlnet_together(clip, judge, hints):
    both = clip(lora=True, path="dip", frames="0, -1")
    assert glows(both).all()
    controlled, free = (overlap(judge, frames, hints["dip"])[[0, -1]] for frames in (both, clip(lora=True)))
    assert controlled.mean() > free.mean() + 0.3
    reading = read_clip(judge, both)
    assert reading.direction == "right"
    assert reading.distance > 0.2
