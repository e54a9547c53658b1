"""What the benchmarks of ART-V and DreamVideo measure with, on the tiny U-Net; and the graph of `bench kill`."""

import argparse
from dataclasses import replace

import pytest
import torch

from stillmotion.benchmarks import bench_artv, bench_dreamvideo, bench_kill
from stillmotion.benchmarks.pocket_host import ARTV, artv_file, one_by_one
from stillmotion.model_patches import checkpoint

from .test_autoregressive import CONFIG, words


@pytest.fixture
def subject(comfy, tiny_sd):
    artv = bench_artv.random_artv(CONFIG, torch.float32)
    return bench_artv.Subject(tiny_sd, artv, (4, 4, 4), words(1), words(2))


def test_conditions_go_in_one_batch_or_one_by_one(subject):
    with torch.inference_mode():
        assert min(bench_artv.run_seconds(subject, 2)) > 0
        single = replace(subject, model=one_by_one(subject.model))
        assert len(bench_artv.run_seconds(single, 2, batch=1)) == 2
        with pytest.raises(SystemExit, match="in batches of"):
            bench_artv.run_seconds(single, 1)
        figures = bench_artv.ratios(subject, 1, 2, "_tiny")
    assert set(figures) == {"batched_over_separate_tiny", "cached_over_uncached_tiny"}


def test_forwards_of_several_frames_are_timed_at_each_size(subject):
    with torch.inference_mode():
        assert bench_artv.one_forward(subject, 2, 2, artv=False) > 0
        found = bench_artv.table_3(subject, [32, 48], 3, 1)
    assert set(found["batches_per_second"]) == {32, 48}


def test_a_fresh_file_has_the_sizes_of_the_bundled_one(tmp_path):
    path = artv_file(tmp_path)
    assert path == (ARTV if ARTV.is_file() else tmp_path / "fresh_artv.safetensors")
    assert checkpoint.load(path, expect=checkpoint.ARTV).config["block_channels"] == [64, 128, 128]


def test_timed_tells_the_network_s_share(tiny_sd, run_sampler):
    timed = bench_dreamvideo.Timed(tiny_sd)
    run_sampler(timed.model, frames=3, steps=2, cfg=1.0)
    assert timed.rows == [3, 3]
    assert len(timed.calls) == len(timed.networks) == 2
    assert all(0 < network <= call for call, network in zip(timed.calls, timed.networks, strict=True))


def test_the_graph_that_is_killed(tmp_path):
    def prompt(name):
        return bench_kill.prompt_of(argparse.Namespace(workflow=name, clips=5, frames=6, steps=3), tmp_path)

    def only(nodes, kind):
        (node,) = [node for node in nodes.values() if node["class_type"] == kind]
        return node["inputs"]

    rolled = prompt("artv")
    video = only(rolled, "StillMotion_AutoregressiveVideo")
    assert (video["frames"], video["steps"]) == (5, 3)
    assert only(rolled, "StillMotion_LoadArtvModel")["artv_name"] in (
        "pocket/artv.safetensors",
        "fresh_artv.safetensors",
    )
    long = prompt("vidrd_long_video")
    video = only(long, "StillMotion_LongVideo")
    assert (video["clips"], video["steps"], video["overlap"]) == (5, 3, 3)
    assert only(long, "PrimitiveInt")["value"] == 6
