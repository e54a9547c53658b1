"""The measuring tools of the benchmarks of ART-V and DreamVideo, on a tiny U-Net; and the graph of `bench kill`."""

import argparse
from dataclasses import replace

import pytest
import torch
from devkit import workflow

from stillmotion.benchmarks.common.pocket_host import one_by_one
from stillmotion.benchmarks.cost import bench_artv, bench_dreamvideo
from stillmotion.benchmarks.reliability import bench_kill

from .artv.test_autoregressive import CONFIG, conditioning


@pytest.fixture
def subject(comfy, tiny_sd):
    artv = bench_artv.random_artv(CONFIG, torch.float32)
    return bench_artv.Subject(tiny_sd, artv, (4, 4, 4), conditioning(1), conditioning(2))


def test_conditions_go_in_one_batch_or_one_by_one(subject):
    with torch.inference_mode():
        assert min(bench_artv.run_seconds(subject, 2)) > 0
        single = replace(subject, model=one_by_one(subject.model))
        assert len(bench_artv.run_seconds(single, 2, batch=1)) == 2
        with pytest.raises(SystemExit, match="with batches of"):
            bench_artv.run_seconds(single, 1)
        figures = bench_artv.ratios(subject, 1, 2, "_tiny")
    assert set(figures) == {"batched_over_separate_tiny", "cached_over_uncached_tiny"}


def test_forwards_of_several_frames_are_timed_at_each_size(subject):
    with torch.inference_mode():
        assert bench_artv.one_forward(subject, 2, 2, artv=False) > 0
        rows = bench_artv.table_3(subject, [32, 48], 3, 1)
    assert set(rows["batches_per_second"]) == {32, 48}


def test_timed_tells_the_network_s_share(tiny_sd, run_sampler):
    timed = bench_dreamvideo.Timed(tiny_sd)
    run_sampler(timed.model, frames=3, steps=2, cfg=1.0)
    assert timed.rows == [3, 3]
    assert len(timed.call_seconds) == len(timed.network_seconds) == 2
    assert all(0 < network <= call for call, network in zip(timed.call_seconds, timed.network_seconds, strict=True))


KILLED = {
    "vidrd_long_video": ("StillMotion_LongVideo", {"clips": 5, "steps": 3}),
    "dreamvideo_stages": ("StillMotion_StagedVideo", {"steps": 3}),
    "artv_text_image_to_video": ("StillMotion_AutoregressiveVideo", {"frames": 5, "steps": 3}),
}


@pytest.mark.parametrize("name", KILLED)
def test_the_graph_that_is_killed_is_the_bundled_one_without_views(name):
    kind, expected = KILLED[name]
    prompt = bench_kill.prompt_of(argparse.Namespace(workflow=name, clips=5, frames=6, steps=3))
    whole = workflow.load(name)
    (video,) = [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
    assert {key: video[key] for key in expected} == expected
    assert set(video) == {key for node in whole.values() if node["class_type"] == kind for key in node["inputs"]}
    links = [value[0] for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert set(links) <= set(prompt) <= set(whole)
    assert not any(
        "GetVideoComponents" in node["class_type"] or "Save" in node["class_type"] for node in prompt.values()
    )
    if name == "dreamvideo_stages":
        (texts,) = [
            node["inputs"]["text"] for node in prompt.values() if node["class_type"] == "StillMotion_StagePrompts"
        ]
        assert len(texts.splitlines()) == 5
    if name == "vidrd_long_video":
        (reuse,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "StillMotion_ReuseOptions"]
        assert reuse["overlap"] == 3
    if kind != "StillMotion_AutoregressiveVideo":
        (frames,) = [node["inputs"]["value"] for node in prompt.values() if node["class_type"] == "PrimitiveInt"]
        assert frames == 6
