"""What the training command says about mistakes: one sentence, exit code 2, and no traceback."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillmotion.training import failures
from stillmotion.training.__main__ import main
from stillmotion.training.data import latents, shard_files
from stillmotion.training.plans.errors import ConfigError, InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 50)
    for name in ("empty", "vid", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "vid" / "a.mp4").write_bytes(b"junk")
    (tmp_path / "vid" / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "bad" / "clips-000000.safetensors").write_bytes(b"x" * 9)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000, encoding="utf-8")
    return tmp_path


def said(capsys, *words):
    """The sentence of a command that fails."""
    with pytest.raises(SystemExit) as error:
        main(list(map(str, words)))
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    return lines[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train harivo_pocket --latents {w}/none --out {w}/r", "there are no latents in .*none; make them"),
        ("train harivo_pocket --latents {w}/bad --out {w}/r", "is no whole shard of latents"),
        ("train harivo_pocket --out {w}/r", "give the folder of latents"),
        ("train nope", "there is no config nope; give a .toml file, or one of"),
        ("train {w}/bytes.toml", "bytes.toml is not TOML: .*UTF-8"),
        ("train {w}/deep.toml", "deep.toml is not TOML"),
        (
            "train vidrd_pocket --latents {w}/bad --start {w}/bad.safetensors --out {w}/r",
            "bad.safetensors|no whole shard",
        ),
        ("train harivo_pocket --set train.stpes=5", "stpes is unknown; did you mean steps"),
        (
            "train harivo_pocket --set base.weights=/nope.safetensors --latents {w}/bad",
            "nope.* does not exist",
        ),
        (
            "train harivo_pocket --set base.weights={w}/bad.safetensors --latents {w}/bad",
            "bad.safetensors is truncated",
        ),
        (
            "train harivo_sd15 --set base.weights={w}/bad.safetensors --latents {w}/bad",
            "no Stable Diffusion 1",
        ),
        ("latents harivo_pocket --videos {w}/empty --out {w}/o", "empty: there is no video"),
        ("latents harivo_pocket --videos {w}/none --out {w}/o", "none: No such file"),
        ("latents harivo_pocket --videos {w}/vid --size 64 --out {w}/o", "no video there gives a clip of 24 frames"),
        ("latents harivo_pocket --clips 0 --out {w}/o", "0 is not a whole number of 1 or more"),
        ("latents harivo_pocket --size 0 --out {w}/o", "0 is not a whole number of 1 or more"),
        ("latents harivo_pocket --size 61 --clips 1 --out {w}/o", "--size 61 is no multiple of 4"),
        ("latents harivo_pocket --fps nan --out {w}/o", "nan is not a number of frames per second"),
        ("export {w}/bad.safetensors --layout diffusers --out {w}/e", "bad.safetensors is truncated"),
        ("export {w}/none.safetensors --layout diffusers --out {w}/e", "none.safetensors does not exist"),
        ("eval {w}/none --out {w}/e", "none"),
        ("motion --latents {w}/bad --out {w}/m --recipe {w}/none.toml", "none.toml"),
        ("train harivo_pocket --latents {w}/bad --processes 0", "0 is not a whole number of 1 or more"),
        ("view mapping {w}/bad.safetensors --out {w}/x.png", "bad.safetensors is truncated"),
        ("view slice {w}/vid/a.mp4 --out {w}/x.png", "a.mp4"),
        ("doctor harivo_pocket --latents {w}/bad", "no whole shard"),
        ("select motion harivo_pocket --latents {w}/bad --out {w}/l", "no whole shard"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(folder, comfyui_dir, capsys, words, message):
    import re

    sentence = said(capsys, *words.format(w=folder).split())
    assert re.search(message, sentence), sentence


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.grad_clip=0", "grad_clip is 0.0; it must be above 0"),
        ("train.lr=0", "lr is 0.0; it must be above 0"),
        ("train.lr=nan", "lr is nan; it must be a finite number"),
        ("train.lr=1e3", "lr is 1000.0; it must be at most 10"),
        ("train.steps=0", "steps is 0; it must be above 0"),
        ("train.steps=-5", "steps is -5; it must be at least 0"),
        ("train.batch=1000000000", "batch is 1000000000; it must be at most 65536"),
        ("train.ema=1.5", "ema is 1.5; it must be at most 1"),
        ("model.heads=-1", "heads is -1; it must be at least 0"),
        ("model.heads=0", "heads is 0; it must be above 0"),
        ("model.mapping_width=0", "mapping_width is 0; it must be above 0"),
        ("data.drop=inf", "drop is inf; it must be a finite number"),
        ("data.frames=100000", "frames is 100000; it must be at most 4096"),
        ("train.seed=99999999999999999999", "seed is larger than"),
        ("model.beta_start=0.5", "beta_start is 0.5 and beta_end 0.012; they must rise below 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(tmp_path, capsys, setting, message):
    assert message in said(capsys, "train", "harivo_pocket", "--set", setting, "--latents", tmp_path)


def test_the_traceback_is_shown_on_request(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "nope", "--traceback"])
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.strip().splitlines()[-1].startswith("error: there is no config nope")


def test_a_bug_of_ours_is_no_sentence():
    for error in (KeyError("x"), RuntimeError("y"), AttributeError("z"), TypeError("t")):
        with pytest.raises(type(error)), failures.reported():
            raise error
    with pytest.raises(ValueError, match="not enough"), failures.reported():
        _a, _b = torch.ones(1)  # Python's words, of code outside the package
    for error in (InputError("a"), ConfigError("b"), OSError(28, "No space left", "/x")):
        with pytest.raises(failures.Failure), failures.reported():
            raise error


def test_the_exit_code_of_the_process_is_2():
    command = [sys.executable, "-m", "stillmotion.training", "train", "nope"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert ended.returncode == 2
    assert ended.stderr.strip().startswith("error: there is no config nope")


VAE = torch.nn.Linear(2, 2)


@pytest.fixture
def cache(tmp_path):
    """A cache of two shards, as `latents` writes it."""
    writer = latents.ShardWriter(tmp_path / "cache", VAE, {"seed": "0", "times": "0.0,0.5"}, 2)
    for i in range(3):
        writer.add(torch.full((2, 4, 2, 2), float(i)).half(), f"clip {i}", torch.zeros(3, 8, 8))
    writer.close()
    return tmp_path / "cache"


def shard(cache):
    return cache / "clips-000000.safetensors"


def header_of(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_a_whole_cache_is_read(cache):
    read = latents.read(cache, VAE)
    assert (len(read), read.captions) == (3, ["clip 0", "clip 1", "clip 2"])


def test_a_cache_whose_encoding_was_killed_is_not_complete(cache):
    (cache / shard_files.END).unlink()
    with pytest.raises(shard_files.ShardError, match="are not complete, because their encoding was stopped"):
        latents.read(cache, VAE)


def test_a_cache_without_its_last_shard_is_not_complete(cache):
    (cache / "clips-000002.safetensors").unlink()
    with pytest.raises(shard_files.ShardError, match="has 2 of 3 clips"):
        latents.read(cache, VAE)


@pytest.mark.parametrize("mark", ["{", "[]", "{}", "5"])
def test_a_damaged_end_mark_is_named(cache, mark):
    (cache / shard_files.END).write_text(mark, encoding="utf-8")
    with pytest.raises(shard_files.ShardError, match="json cannot be read"):
        latents.read(cache, VAE)


def test_a_flipped_bit_in_a_cache_is_named(cache):
    content = bytearray(shard(cache).read_bytes())
    content[-1] ^= 1
    shard(cache).write_bytes(content)
    with pytest.raises(shard_files.ShardError, match=r"no whole shard of latents .*the digest differs"):
        latents.read(cache, VAE)


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"latents": torch.zeros(2, 2, 4, 2, 2, dtype=torch.int8)}, {}, "its latents are int8"),
        ({"latents": torch.zeros(2, 2, 4, 2, 2, dtype=torch.complex64)}, {}, "its latents are complex64"),
        ({"latents": torch.full((2, 2, 4, 2, 2), float("nan"))}, {}, "NaN or infinite"),
        ({"latents": torch.zeros(2, 4, 2, 2)}, {}, "not floating-point"),
        ({"x": torch.zeros(1)}, {}, "latents.* is missing"),
        (None, {"times": "x"}, "could not convert"),
        (None, {"times": "0.0"}, "1 times for clips of 2 frames"),
        (None, {"times": "0.0,nan"}, "2 times for clips"),
        (None, {"first": "-1"}, "numbers below 0"),
        (None, {"captions": "[" * 100_000}, "nested too deeply"),
        (None, {"captions": '["a"]'}, "no list of texts for 2 clips"),
        (None, {"captions": "{}"}, "no list of texts"),
        (None, {"vae": ""}, "no autoencoder"),
    ],
)
def test_a_shard_that_is_none_is_named(cache, tensors, header, message):
    path = shard(cache)
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, header_of(path) | {"digest": ""} | header)
    with pytest.raises(shard_files.ShardError, match=message):
        latents.read(cache, VAE)


def test_caches_of_earlier_versions_are_read(cache):
    """Their shards have neither a digest nor an end mark."""
    for path in cache.glob("*.safetensors"):
        header = {key: value for key, value in header_of(path).items() if key not in ("digest", "end")}
        save_file(load_file(path), path, header)
    (cache / shard_files.END).unlink()
    assert len(latents.read(cache, VAE)) == 3


def test_the_end_mark_is_written_last(tmp_path):
    writer = latents.ShardWriter(tmp_path, VAE, {"seed": "0", "times": "0.0"}, 1)
    writer.add(torch.zeros(1, 4, 2, 2).half(), "a", torch.zeros(3, 8, 8))
    assert not (tmp_path / shard_files.END).exists()
    writer.close()
    assert json.loads((tmp_path / shard_files.END).read_text(encoding="utf-8")) == {"clips": 1}
