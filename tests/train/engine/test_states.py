"""A state is read only if it is whole, no code in it runs, and only one run writes into a folder."""

import errno
import functools
import json
import logging
import os
import pickle
import shutil
import signal
import threading

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as write_old

from stillmotion.training.engine import lock, old_state, state
from stillmotion.training.engine.lock import BusyRun, alone
from stillmotion.training.engine.loop import _stop_signals

TENSORS = {
    "counts": torch.arange(4),
    **{f"weights/{i}": torch.randn(16, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)},
    "step": torch.tensor(3.0),
}


def written(folder):
    for step in (2, 4):
        state.save(folder, step, TENSORS, {"identity": {"a": "b"}}, keep=2)
    return folder / "step-00000004"


def empty():
    return {name: torch.zeros_like(value) for name, value in TENSORS.items()}


def flip(path, share):
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 64
    path.write_bytes(content)


HARM = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "junk": lambda path: path.write_bytes(os.urandom(300)),
    "deep": lambda path: path.write_text("[" * 100_000, encoding="utf-8"),
    "list": lambda path: path.write_text("[]", encoding="utf-8"),
    **{f"flip {share}": functools.partial(flip, share=share) for share in (0.02, 0.3, 0.5, 0.9, 0.99)},
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["tensors-000.safetensors", "run.json", "COMPLETE"])
def test_a_damaged_state_is_passed_over_with_a_warning(tmp_path, harm, name, caplog):
    newest = written(tmp_path)
    HARM[harm](newest / name)
    if (harm, name) == ("deleted", "COMPLETE"):
        assert state.states(tmp_path) == [tmp_path / "step-00000002"]  # as after a killed save
        return
    with caplog.at_level(logging.WARNING):
        whole = state.newest(tmp_path)
    assert whole == tmp_path / "step-00000002"
    assert whole is not None
    assert "step-00000004 is damaged" in caplog.text
    loaded = empty()
    state.load(whole, loaded)
    assert all(torch.equal(loaded[key], value) for key, value in TENSORS.items())
    assert state.names(whole) == set(TENSORS)


def test_when_every_state_is_damaged_the_run_does_not_begin_again_in_silence(tmp_path):
    written(tmp_path)
    for path in tmp_path.glob("*/tensors-000.safetensors"):
        flip(path, 0.9)
    with pytest.raises(state.StateError, match=r"every state in .* is damaged; delete that folder"):
        state.newest(tmp_path)
    assert state.newest(tmp_path / "nothing") is None


def test_tensors_that_share_memory_and_odd_types_come_back(tmp_path):
    whole = torch.randn(6)
    tensors = {
        "a": whole,
        "b": whole,
        "c": whole[::2],
        "d": torch.tensor(True),
        "e": torch.ones(2, dtype=torch.bfloat16),
    }
    state.save(tmp_path, 1, tensors, {}, keep=1)
    loaded = {name: torch.zeros_like(value) for name, value in tensors.items()}
    state.load(tmp_path / "step-00000001", loaded)
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    with pytest.raises(state.StateError, match="x is missing"):
        state.load(tmp_path / "step-00000001", {"x": torch.zeros(1)})
    with pytest.raises(state.StateError, match=r"a has the shape \(6,\) instead of \(5,\)"):
        state.load(tmp_path / "step-00000001", {"a": torch.zeros(5)})


def test_a_full_disk_is_a_sentence_and_leaves_the_state_before_it(tmp_path, monkeypatch):
    state.save(tmp_path, 2, TENSORS, {}, keep=2)

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(state.StateError, match=r"step 4 could not be written .* the states before it are intact"):
        state.save(tmp_path, 4, TENSORS, {}, keep=2)
    monkeypatch.undo()
    assert state.newest(tmp_path) == tmp_path / "step-00000002"
    state.save(tmp_path, 4, TENSORS, {}, keep=2)
    assert state.newest(tmp_path) == tmp_path / "step-00000004"


def old_format(folder):
    """A state as earlier versions wrote it."""
    folder.mkdir(parents=True)
    write_old(dict(TENSORS), storage_writer=FileSystemWriter(folder), no_dist=True)
    (folder / "run.json").write_text(json.dumps({"step": 2, "identity": {}}), encoding="utf-8")
    (folder / "COMPLETE").touch()
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_state_of_an_earlier_version_is_read(tmp_path):
    folder = old_format(tmp_path / "step-00000002")
    assert state.newest(tmp_path) == folder
    assert state.names(folder) == set(TENSORS)
    loaded = empty()
    state.load(folder, loaded)
    assert all(torch.equal(loaded[key], value) for key, value in TENSORS.items())


class Code:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("content", ["code", "text", "deep"])
def test_no_code_in_an_index_runs(tmp_path, content):
    folder = old_format(tmp_path / "step-00000002")
    pickles = {"code": pickle.dumps(Code(tmp_path / "ran")), "text": b"cos\nsystem\n(S'x'\ntR.", "deep": b"(" * 10_000}
    (folder / ".metadata").write_bytes(pickles[content])
    with pytest.raises(state.StateError, match="damaged"):
        state.newest(tmp_path)
    with pytest.raises(state.StateError, match="cannot be read"):
        state.names(folder)
    with pytest.raises(state.StateError):
        state.load(folder, empty())
    assert not (tmp_path / "ran").exists()
    assert old_state.is_old(folder)


def test_two_runs_cannot_write_into_one_folder(tmp_path, monkeypatch):
    with (
        alone(tmp_path / "run"),
        pytest.raises(BusyRun, match="is being trained by another process"),
        alone(tmp_path / "run"),
    ):
        pass
    with alone(tmp_path / "run"):  # given back
        pass

    def without_locks(_file):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(lock, "try_lock", without_locks)
    with alone(tmp_path / "run"):
        pass


def test_ctrl_c_stops_like_sigterm_and_the_second_one_at_once():
    assert threading.current_thread() is threading.main_thread()
    with _stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_saves_of_one_step_replace_each_other(tmp_path):
    for _ in range(2):
        state.save(tmp_path, 2, TENSORS, {}, keep=1)
    assert [path.name for path in state.states(tmp_path)] == ["step-00000002"]
    shutil.rmtree(tmp_path / "step-00000002")
    assert state.states(tmp_path) == []
