"""Reading a weight file ends in its content or in a sentence, soon, and with no more memory than the file has bytes."""

import json
import struct
import time
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from stillmotion.benchmarks.fuzzing import damage, harness, weights
from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.building import TooLarge, build
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.files import digest_of
from stillmotion.model_patches.layouts import CheckpointError

SYSTEMS = tuple(weights.CONFIGS)


def write_file(tmp_path, name="motion", tensors=None, **header):
    path = tmp_path / f"{name}.safetensors"
    tensors = weights.weights_of(name) if tensors is None else tensors
    save_file(dict(tensors), path, {"format": "stillmotion/1", "system": name} | header)
    return path


def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


COUNTS = ("layers_per_block", "conv_layers", "adapter_blocks", "max_frames", "frames")
FIELDS = [(name, field) for name, config in weights.CONFIGS.items() for field in COUNTS if field in config]


@pytest.mark.parametrize(("name", "field"), FIELDS)
@pytest.mark.parametrize("value", [10**8, 2**62, 50_000])
def test_a_count_that_the_file_does_not_have_is_named_at_once(tmp_path, name, field, value):
    config = weights.CONFIGS[name]
    path = write_file(tmp_path, name, {"x": torch.zeros(1)}, config=json.dumps(config | {field: value}))

    def load():
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load(path, expect=SYSTEMS)

    assert seconds(load) < 3.0


@pytest.mark.parametrize(
    "key",
    [
        "down_blocks.0.motion_modules.99999999.temporal_transformer.norm.weight",
        "down_blocks.0.temp_convs.99999999.convs.0.weight",
        "down_blocks.0.temp_convs.0.convs.99999999.weight",
        f"down_blocks.0.motion_modules.{'9' * 5000}.temporal_transformer.norm.weight",
    ],
)
def test_a_number_in_a_name_builds_nothing(tmp_path, key):
    path = tmp_path / "bomb.safetensors"
    tensors = {key: torch.zeros(32), "down_blocks.0.temp_convs.0.convs.0.weight": torch.zeros(32)}
    save_file(tensors | {"a.pos_encoder.pe": torch.zeros(1, 24, 32)}, path)

    def load():
        with pytest.raises(CheckpointError, match="bomb"):
            checkpoint.load(path, expect=SYSTEMS)

    assert seconds(load) < 3.0


def test_a_model_is_built_no_further_than_the_file_has_weights():
    layers_built = []

    def make():
        layers = torch.nn.ModuleList()
        for _ in range(10**7):
            layers_built.append(None)
            layers.append(torch.nn.Linear(4, 4))
        return layers

    with pytest.raises(TooLarge, match="more than 1040 parts, but it has 10 weights"):
        build(make, 10)
    assert len(layers_built) < 1040
    assert build(lambda: torch.nn.Linear(2, 2), 2).weight.device.type == "meta"
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"  # nothing stays behind


def test_reading_stops_when_it_is_cancelled(tmp_path):
    path = write_file(tmp_path, config=json.dumps(weights.MOTION))

    class Cancelled(Exception):
        pass

    def look():
        raise Cancelled

    with pytest.raises(Cancelled):
        checkpoint.load(path, look=look)
    looks = []
    checkpoint.load(path, look=lambda: looks.append(None))
    assert len(looks) >= len(load_file(path))


@pytest.mark.parametrize("suffix", [".ckpt", ".CKPT"])
def test_a_table_that_is_larger_than_its_bytes_is_named(tmp_path, suffix):
    path = tmp_path / f"stride{suffix}"
    table = next(key for key in weights.weights_of("motion") if key.endswith(".pe"))
    torch.save(dict(weights.weights_of("motion")) | {table: torch.zeros(1).expand(1, 10**7, 320)}, path)
    with pytest.raises(CheckpointError, match=rf"{table} would take 12,800,000,000 bytes"):
        checkpoint.load(path)


def test_a_file_that_grows_when_it_is_unpacked_is_named(tmp_path):
    path = tmp_path / "zip.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(2**28))
    with pytest.raises(CheckpointError, match=r"would take 268,435,\d+ bytes of memory"):
        checkpoint.load(path)


def test_a_file_of_very_many_names_is_named(tmp_path):
    path = tmp_path / "names.safetensors"
    names = {f"k{i}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(30_000)}
    text = json.dumps(names).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="has 30,000 weights; a file can have at most 20,000"):
        checkpoint.load(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_weights_of_another_type_are_named(tmp_path, dtype, suffix):
    tensors = dict(weights.weights_of("motion"))
    key = next(iter(tensors))
    tensors[key] = tensors[key].to(dtype)
    path = tmp_path / f"typed{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    word = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"1 weights that are no floating-point numbers, first {key} \({word}\)"):
        checkpoint.load(path)


@pytest.mark.parametrize("config", ["[" * 100_000, "[]", "null", "5", '"x"', "1" * 5000])
def test_a_config_that_is_no_table_is_named(tmp_path, config):
    with pytest.raises(CheckpointError, match="has a header that cannot be used"):
        checkpoint.load(write_file(tmp_path, config=config))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("motion", "beta_start", "x"),
        ("motion", "beta_start", float("nan")),
        ("motion", "beta_end", -5),
        ("motion", "beta_start", 1e308),
        ("motion", "heads", True),
        ("motion", "heads", 2.0),
        ("motion", "max_frames", True),
        ("motion", "beta_schedule", "nonsense"),
        ("motion", "beta_schedule", 5),
        ("motion", "group_norm", ["per_frame"]),
        ("motion", "position_encoding", "no"),
        ("motion", "mid_block", "no"),
        ("motion", "layers_per_block", 1.0),
        ("vidrd", "frames", -1),
        ("vidrd", "frames", "x"),
        ("vidrd", "frames", 2**62),
        ("vidrd", "attention", ["no", "yes"]),
        ("vidrd", "spatial", "no"),
        ("artv", "attention", [0, "x"]),
        ("artv", "anchor_positions", "x"),
        ("artv", "latent_channels", True),
        ("harivo", "mapping", 5),
        ("dreamvideo", "layers", []),
    ],
)
def test_a_value_that_no_model_was_trained_with_is_named(tmp_path, name, field, value):
    betas = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012} if name == "motion" else {}
    config = {**weights.CONFIGS[name], **betas, field: value}
    with pytest.raises(CheckpointError, match=r"header that cannot be used \(.*" + field.split("_")[0]):
        checkpoint.load(write_file(tmp_path, name, config=json.dumps(config)), expect=SYSTEMS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_flipped_bit_in_a_file_of_ours_is_named(tmp_path, name):
    path = tmp_path / "own.safetensors"
    checkpoint.save(path, system=name, config=weights.CONFIGS[name], weights=weights.weights_of(name))
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    assert checkpoint.load(path, expect=SYSTEMS).config == weights.CONFIGS[name]
    for place in (start, (start + len(whole)) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"own\.safetensors is damaged: its weights or its config"):
            checkpoint.load(path, expect=SYSTEMS)


def test_another_config_in_a_file_of_ours_is_named(tmp_path):
    path = tmp_path / "own.safetensors"
    checkpoint.save(path, system="motion", config=weights.MOTION, weights=weights.weights_of("motion"))
    file = checkpoint.load(path)
    save_file(file.weights, path, file.header | {"config": json.dumps(weights.MOTION | {"heads": 1})})
    with pytest.raises(CheckpointError, match="its weights or its config are not those that were written"):
        checkpoint.load(path)


def test_a_digest_sees_every_bit_name_shape_and_type():
    tensors = {"a": torch.arange(6.0), "b": torch.zeros(2, 3, dtype=torch.bfloat16), "c": torch.tensor(1)}
    digest = digest_of(tensors)
    assert digest == digest_of(dict(reversed(tensors.items())))
    others = [
        {**tensors, "a": torch.arange(6.0).nextafter(torch.tensor(9.0))},
        {**tensors, "b": torch.zeros(3, 2, dtype=torch.bfloat16)},
        {**tensors, "b": torch.zeros(2, 3, dtype=torch.float16)},
        {"a": tensors["a"], "b": tensors["b"], "d": tensors["c"]},
        {"a": tensors["a"], "b": tensors["b"]},
    ]
    assert len({digest, digest_of(tensors, "label"), *map(digest_of, others)}) == 7


def test_what_was_saved_in_the_place_of_a_file_is_named(tmp_path):
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b'{"error": "gone"}', "is the error message of a download"),
    ):
        for suffix in (".safetensors", ".ckpt"):
            (tmp_path / f"page{suffix}").write_bytes(content)
            with pytest.raises(CheckpointError, match=rf"{message}.* download the file itself again"):
                checkpoint.load(tmp_path / f"page{suffix}")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_what_a_trainer_adds_is_ignored(tmp_path, suffix):
    tensors = dict(weights.weights_of("motion"))
    for extra, prefix in ({"global_step": torch.tensor(7)}, ""), ({}, "model.diffusion_model."), ({}, "module."):
        path = tmp_path / f"trained{suffix}"
        content = {f"{prefix}{key}": value for key, value in tensors.items()} | extra
        if prefix.startswith("model."):
            content["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1)
            content["first_stage_model.x"] = torch.zeros(1)
        save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
        assert checkpoint.load(path).weights.keys() == tensors.keys()


@pytest.mark.parametrize("damaged", [damage._flip, damage._cut, damage._number, damage._repeat])
def test_damage_is_the_same_for_the_same_seed(damaged):
    import random

    content = save(weights.weights_of("motion"))
    assert damaged(content, random.Random(3)) == damaged(content, random.Random(3))


def test_the_fuzzer_sees_every_kind_of_bad_end(tmp_path):
    """A reader with all the faults that it looks for."""
    import random

    from stillmotion.benchmarks.fuzzing.harness import Case, Kind, Result

    def make(rng: random.Random, folder):
        (folder / "case").write_bytes(b"x")
        return Case(folder / "case", "made", rng.random())

    ends = iter(range(9))

    def read(case):
        end = next(ends)
        if end == 1:
            raise ValueError("a sentence")
        if end == 2:
            raise KeyError("x")
        if end == 3:
            return "another"
        if end == 4:
            (case.path.parent / harness.MARKER).touch()
        if end == 5:
            return bytearray(2**28)[0] or "value"
        return "value"

    kind = Kind("toy", make, read, lambda case, value: value == "value", (ValueError,), lambda folder: Case(folder, ""))
    read(None)
    outcomes = [harness.outcome_of(kind, make(random.Random(0), tmp_path), tmp_path)[0] for _ in range(3)]
    assert outcomes == ["named", "raw", "wrong"]
    assert harness.outcome_of(kind, make(random.Random(0), tmp_path), tmp_path)[0] == "code_run"
    (tmp_path / harness.MARKER).unlink()
    assert harness.outcome_of(kind, make(random.Random(0), tmp_path), tmp_path)[0] == "hang"
    assert harness.totals([Result(0, "", "raw"), Result(1, "", "equal")])["raw"] == 1


@pytest.mark.slow
def test_a_day_s_weight_files_end_in_a_value_or_a_sentence():
    seed = int(time.time() // 86400)
    bad = [result for result in harness.run(weights.KIND, range(60), seed) if result.outcome not in ("named", "equal")]
    assert bad == [], f"bench fuzz --kind weights --seed {seed} --case {bad[0].number}"


def test_a_motion_config_without_the_right_types_is_no_config():
    with pytest.raises(ValueError, match="block_channels is missing"):
        MotionConfig.from_dict({"heads": 8})
    with pytest.raises(ValueError, match="it must be a table of settings"):
        MotionConfig.from_dict([])  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_reader_that_hangs_or_dies_does_not_stop_the_others(tmp_path, monkeypatch):
    import os

    from stillmotion.benchmarks.fuzzing.harness import Case, Kind

    monkeypatch.setattr(harness, "LIMIT", 0.3)

    def read(case):
        if case.label == "hangs":
            while True:
                pass
        if case.label == "dies":
            os._exit(1)
        return case.label

    def make(rng, folder):
        return Case(folder, ("reads", "hangs", "dies", "reads")[numbers.pop(0)])

    numbers = [0, 1, 2, 3]  # in each child the first case is the first that is left
    kind = Kind("toy", make, read, lambda case, value: value == "reads", (), lambda folder: Case(folder, "reads"))
    results = []
    for number in range(4):
        results += harness.run(kind, range(number, number + 1), 0)
        numbers.pop(0)
    assert [result.outcome for result in results] == ["equal", "hang", "raw", "equal"]
    assert [result.label for result in results] == ["reads", "hangs", "dies", "reads"]
