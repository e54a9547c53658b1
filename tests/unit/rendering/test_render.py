"""A job is rendered once, clip by clip, and the files on disk are always checked."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.codec.codec import UnknownCodecError
from PIL import Image

from stillmotion.rendering import formats
from stillmotion.rendering.errors import (
    BusyError,
    CodecError,
    DiskFullError,
    NotWritableError,
    OtherVersionError,
    RenderError,
    SizeError,
)
from stillmotion.rendering.formats import check_format
from stillmotion.rendering.job import clean, open_job
from stillmotion.rendering.loop import render
from stillmotion.rendering.preview import Clock, format_time

from .toy import FRAMES, IDENTITY, SIZE, Heard, Toy, output, run

VICTIM = Path(__file__).with_name("toy.py")


def frames_of(path):
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def contents(folder):
    """The result files of a job, with their bytes."""
    skipped = {"log.txt", "manifest.json", "job.lock"}
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in skipped)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_render_leaves_the_video_and_nothing_half(tmp_path):
    toy = Toy()
    folder, path, watch = run(tmp_path, 3, toy=toy)
    assert toy.sampled == [(0, 0), (1, 0), (2, 0)]
    assert path == folder / "toy.mp4"
    assert len(frames_of(path)) == 3 * FRAMES
    assert not list(folder.rglob("*.partial")) + list(folder.glob("growing*"))
    shares = [report.share for report in watch.told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert watch.told[-1].strip is not None
    with av.open(str(path)) as video:
        assert json.loads(video.metadata["prompt"]) == {"1": {}}
        assert video.streams.video[0].average_rate == 8
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


@pytest.mark.parametrize("kind", ["ffv1-mkv", "png", "webp"])
def test_lossless_formats_hold_the_decoded_frames(tmp_path, kind):
    folder, path, _ = run(tmp_path, 2, kind=kind)
    toy, before, expected = Toy(), None, []
    for clip in range(2):
        latents, before = toy.sample(clip, 0, before, lambda share: None)
        expected += toy.decode(latents)
    expected = np.concatenate(expected)
    assert np.array_equal(frames_of(path), expected)
    pictures = sorted((folder / "frames").glob("*")) if kind != "ffv1-mkv" else []
    assert [p.name for p in pictures] == [f"{i + 1:06}.{kind}" for i in range(len(pictures))]
    assert len(pictures) == (0 if kind == "ffv1-mkv" else 2 * FRAMES)
    for picture, frame in zip(pictures, expected, strict=False):
        with Image.open(picture) as image:
            assert np.array_equal(np.asarray(image), frame)


def test_joining_encodes_nothing_again(tmp_path):
    folder, path, _ = run(tmp_path, 3)
    parts = [frames_of(folder / "clips" / f"{i:05}" / "segment.mp4") for i in (1, 2, 3)]
    assert np.array_equal(frames_of(path), np.concatenate(parts))
    with av.open(str(path)) as video:
        packets = [packet for packet in video.demux(video=0) if packet.size]
        times = [(packet.pts or 0) * packet.time_base for packet in packets]
    assert times == [i / 8 for i in range(3 * FRAMES)]
    assert [packet.is_keyframe for packet in packets][::FRAMES] == [True] * 3


@pytest.mark.parametrize("kind", ["h264-mp4", "ffv1-mkv"])
def test_a_segment_plays_by_itself(tmp_path, kind):
    folder, _, _ = run(tmp_path, 2, kind=kind)
    (path,) = folder.glob("clips/00002/segment.*")
    with av.open(str(path)) as video:
        assert [frame.time for frame in video.decode(video=0)] == pytest.approx(
            [i / 8 for i in range(FRAMES)], abs=1e-3
        )
        assert video.streams.video[0].average_rate == 8


def test_colours_survive_the_codec(tmp_path):
    from stillmotion.rendering.segments import segment_writer

    colours = np.array([[200, 30, 40], [20, 180, 60], [40, 60, 210], [128, 128, 128]], dtype=np.uint8)
    still = np.repeat(np.repeat(colours[None], 32, 0), 16, 1)  # four bars
    with segment_writer(tmp_path / "bars.mp4", output().kind, output().fps) as writer:
        writer.write(still[None])
    frame = frames_of(tmp_path / "bars.mp4")[0]
    assert np.abs(frame[16, 8::16].astype(int) - colours).max() <= 4


def test_a_finished_job_is_not_rendered_again_and_can_be_extended(tmp_path):
    whole, _, _ = run(tmp_path / "at once", 4)
    folder, path, _ = run(tmp_path / "extended", 2)
    again = Toy()
    _, again_path, watch = run(tmp_path / "extended", 2, toy=again)
    assert again_path == path
    assert (again.sampled, again.decoded) == ([], 0)
    assert watch.remarks == [f"resumes in {folder.name}"]  # the video is not joined again either
    more = Toy()
    run(tmp_path / "extended", 4, toy=more)
    assert more.sampled == [(2, 0), (3, 0)]
    assert contents(folder) == contents(whole)
    fewer = Toy()
    assert len(frames_of(run(tmp_path / "extended", 3, toy=fewer)[1])) == 3 * FRAMES
    assert fewer.sampled == []


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_with_the_same_bytes(tmp_path):
    """Real kills; each repeats at most the clip that was being sampled."""
    clips, kills = 24, 12
    arguments = [sys.executable, "-P", str(VICTIM), str(tmp_path / "killed"), str(clips), str(kills), "7"]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    ends = [line.split() for line in ended.stdout.splitlines()]
    killed = sum(end[0] == "killed" for end in ends)
    assert killed >= 10
    sampled = [int(word) for end in ends for word in end[1:]]
    assert len(sampled) - clips <= killed
    for before, after in pairwise(sampled):
        assert after in {before, before + 1}
    whole, _, _ = run(tmp_path / "whole", clips)
    (folder,) = (tmp_path / "killed").iterdir()
    assert contents(folder) == contents(whole)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("kind", ["h264-mp4", "ffv1-mkv"])
def test_a_stopped_render_leaves_a_file_that_plays(tmp_path, kind):
    def stop(clip):
        if clip == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path, 4, toy=Toy(note=stop), kind=kind)
    (folder,) = tmp_path.iterdir()
    (growing,) = folder.glob("growing*")
    _, path, _ = run(tmp_path / "whole", 2, kind=kind)
    assert np.array_equal(frames_of(growing), frames_of(path))
    run(tmp_path, 4, kind=kind)
    assert not list(folder.glob("growing*"))


def test_a_stop_in_decoding_leaves_the_sampled_latents(tmp_path):
    class Broken(Toy):
        def decode(self, latents):
            yield next(super().decode(latents))
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path, 1, toy=Broken())
    toy = Toy()
    run(tmp_path, 1, toy=toy)
    assert (toy.sampled, toy.decoded) == ([], FRAMES)


@pytest.mark.parametrize(
    ("name", "sampled", "decoded"),
    [
        ("latents.safetensors", [(1, 0)], 0),
        ("state.safetensors", [(1, 0)], 0),
        ("segment.mp4", [], FRAMES),
        ("clip.json", [(1, 0)], FRAMES),
    ],
)
@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_only_damaged_files_are_made_again(tmp_path, name, sampled, decoded, harm):
    folder, _, _ = run(tmp_path, 3)
    whole = contents(folder)
    path = folder / "clips" / "00002" / name
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9) if harm == "changed" else path.unlink()
    toy = Toy()
    _, _, watch = run(tmp_path, 3, toy=toy)
    assert (toy.sampled, toy.decoded) == (sampled, decoded)
    assert contents(folder) == whole
    if name != "clip.json":
        assert any("is damaged; clip 2 is" in remark for remark in watch.remarks)
        assert "is damaged; clip 2 is" in (folder / "log.txt").read_text()


def test_a_damaged_video_is_joined_again(tmp_path):
    _, path, _ = run(tmp_path, 2)
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    toy = Toy()
    run(tmp_path, 2, toy=toy)
    assert path.read_bytes() == before
    assert toy.decoded == 0


def test_one_clip_is_rendered_again_and_the_others_stay(tmp_path):
    folder, path, _ = run(tmp_path, 4)
    before, first = contents(folder), frames_of(path)
    toy = Toy()
    run(tmp_path, 4, toy=toy, takes={1: 1})
    assert toy.sampled == [(1, 1)]
    after = contents(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert {name.split("/")[1] for name in changed if name.startswith("clips")} == {"00002"}
    frames = frames_of(path)
    same = [np.array_equal(frames[i], first[i]) for i in range(4 * FRAMES)]
    assert same == [True] * FRAMES + [False] * FRAMES + [True] * 2 * FRAMES
    toy_again = Toy()
    run(tmp_path, 4, toy=toy_again)  # it is kept without being named
    assert toy_again.sampled == []
    run(tmp_path, 4, takes={1: 0})
    assert contents(folder) == before
    with pytest.raises(RenderError, match="clip 5 cannot be rendered again, because the video has clips 1 to 4"):
        run(tmp_path, 4, takes={4: 1})


def test_a_clip_with_other_inputs_is_made_again_with_all_after_it(tmp_path):
    """When a prompt of a story is edited or added, earlier frames are kept."""
    folder, _, _ = run(tmp_path / "edited", 3, toy=Toy(inputs=lambda clip: "aab"[clip]))
    before = contents(folder)
    more = Toy(inputs=lambda clip: "aabc"[clip])
    run(tmp_path / "edited", 4, toy=more)
    assert more.sampled == [(3, 0)]
    edited = Toy(inputs=lambda clip: "axbc"[clip])
    run(tmp_path / "edited", 4, toy=edited)
    assert edited.sampled == [(1, 0), (2, 0), (3, 0)]
    whole, _, _ = run(tmp_path / "whole", 4, toy=Toy(inputs=lambda clip: "axbc"[clip]))
    after = contents(folder)
    assert after == contents(whole)
    assert {name for name in before if before[name] != after[name]}.isdisjoint(
        name for name in before if name.startswith("clips/00001/")
    )


def test_edited_inputs_survive_a_stop(tmp_path):
    """Interrupted after the edited clip: the later clips still belong to the old inputs and are sampled again."""
    run(tmp_path, 4, toy=Toy(inputs=lambda clip: "aaaa"[clip]))

    def stop(clip):
        if clip == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path, 4, toy=Toy(note=stop, inputs=lambda clip: "axaa"[clip]))
    rest = Toy(inputs=lambda clip: "axaa"[clip])
    folder, _, _ = run(tmp_path, 4, toy=rest)
    assert rest.sampled == [(2, 0), (3, 0)]
    whole, _, _ = run(tmp_path / "whole", 4, toy=Toy(inputs=lambda clip: "axaa"[clip]))
    assert contents(folder) == contents(whole)


def test_the_take_of_a_new_clip_survives_a_stop(tmp_path):
    def stop(clip):
        if clip == 1:
            raise Stopped

    toy = Toy(note=stop)
    with pytest.raises(Stopped):
        run(tmp_path, 3, toy=toy, takes={1: 3})
    assert toy.sampled == [(0, 0)]
    rest = Toy()
    run(tmp_path, 3, toy=rest)
    assert rest.sampled == [(1, 3), (2, 0)]


def test_a_stop_while_damaged_latents_are_sampled_again_leaves_the_segment(tmp_path):
    def stop(clip):
        raise Stopped

    folder, _, _ = run(tmp_path, 2)
    whole = contents(folder)
    (folder / "clips" / "00001" / "latents.safetensors").unlink()
    with pytest.raises(Stopped):
        run(tmp_path, 2, toy=Toy(note=stop))
    rest = Toy()
    run(tmp_path, 2, toy=rest)
    assert (rest.sampled, rest.decoded) == ([(0, 0)], 0)
    assert contents(folder) == whole


def test_every_clip_is_written_as_often_as_the_first(tmp_path, monkeypatch):
    """Each file is flushed to disk, which takes longer than everything else for a clip."""
    replaced = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append(Path(b)), replace(a, b)))
    run(tmp_path, 9)
    written = [path for path in replaced if path.parent.parent.name == "clips"]
    assert len(written) == 9 * 5
    assert len(replaced) - len(written) == 3  # manifest, video, record of the video


def test_progress_of_a_video_of_single_frames_is_in_frames(tmp_path):
    watch = Heard()
    with open_job(tmp_path, "toy", IDENTITY) as (job, _):
        render(job, 2, Toy().work(), output(unit="frame"), watch=watch)
    assert str(watch.told[-1]).startswith("frame 2 of 2")
    assert "frame 2 is sampled" in (job.folder / "log.txt").read_text()


def test_cleaned_states_are_made_again_when_they_are_needed(tmp_path):
    folder, _, _ = run(tmp_path, 4)
    before = contents(folder)
    with open_job(tmp_path, "toy", IDENTITY) as (job, _):
        assert clean(job) > 0
    assert len(list(folder.glob("clips/*/state.safetensors"))) == 1
    toy = Toy()
    run(tmp_path, 4, toy=toy)
    assert toy.sampled == []
    run(tmp_path, 5, toy=toy)
    assert toy.sampled == [(4, 0)]
    again = Toy()
    run(tmp_path, 5, toy=again, takes={2: 1})
    assert again.sampled == [(0, 0), (1, 0), (2, 1)]
    run(tmp_path, 4, takes={2: 0})
    files = contents(folder)
    assert all(files[name] == content for name, content in before.items() if "segment" in name)


def test_other_inputs_are_another_job_and_the_reason_is_logged(tmp_path):
    first, _, watch = run(tmp_path, 1)
    assert watch.remarks[0] == "a new job"
    second, _, watch = run(tmp_path, 1, identity={"seed": 2, "graph": {"model": "b"}})
    assert second != first
    assert watch.remarks[0] == (
        f"a new job, because inputs differ from those of {first.name}: graph.model: a -> b; seed: 1 -> 2"
    )
    _, _, watch = run(tmp_path, 1)
    assert watch.remarks[0] == f"resumes in {first.name}"


def test_another_version_of_the_host_continues_a_job_and_says_what_may_differ(tmp_path):
    """An update of ComfyUI must not make every finished video a new job."""
    old, new = {"comfyui": "0.30.0", "torch": "2.11"}, {"comfyui": "0.33.0", "torch": "2.11"}
    remarks = []
    for machine in (old, old, new, new, None):
        with open_job(tmp_path, "toy", IDENTITY, machine) as (job, remark):
            remarks.append(remark)
    name = job.folder.name
    assert remarks == [
        "a new job",
        f"resumes in {name}",
        f"resumes in {name}; comfyui: 0.30.0 -> 0.33.0: the last bits of what is rendered from here on may differ from "
        "the frames before",
        f"resumes in {name}",
        f"resumes in {name}",
    ]
    assert json.loads((job.folder / "manifest.json").read_text())["machine"] == new
    assert len(list(tmp_path.iterdir())) == 1


def test_two_processes_cannot_render_one_job(tmp_path):
    with (
        open_job(tmp_path, "toy", IDENTITY),
        pytest.raises(BusyError, match="another process"),
        open_job(tmp_path, "toy", IDENTITY),
    ):
        pass
    with open_job(tmp_path, "toy", IDENTITY):  # given back
        pass


def test_a_folder_of_another_version_is_named(tmp_path):
    folder, _, _ = run(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 9}))
    with pytest.raises(OtherVersionError, match="is a job of version 9, but this StillMotion reads version 1"):
        run(tmp_path, 1)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(RenderError, match=r"manifest\.json is damaged; delete that folder"):
        run(tmp_path, 1)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a" * 90])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(RenderError, match="the name is"):
        run(tmp_path, 1, name=name)


def test_a_folder_that_cannot_be_written_is_named_before_sampling(tmp_path):
    (tmp_path / "file").touch()
    toy = Toy()
    with pytest.raises(NotWritableError, match="is not writable"):
        run(tmp_path / "file", 1, toy=toy)
    assert toy.sampled == []


def test_odd_sizes_are_refused_with_a_valid_size():
    with pytest.raises(SizeError, match="would have 63 x 48 pixels; use 64 x 48, or the format ffv1-mkv"):
        check_format("h264-mp4", 63, 48)
    assert check_format("ffv1-mkv", 63, 47).codec == "ffv1"
    with pytest.raises(SizeError, match="would have 64 x 47 pixels; use 64 x 48"):
        check_format("h264-mp4", 64, 47)
    assert check_format("h264-mp4", 64, 48).suffix == ".mp4"


@pytest.mark.parametrize(
    ("name", "codec", "other"),
    [("h264-mp4", "libx264", "ffv1-mkv"), ("png", "ffv1", "h264-mp4"), ("ffv1-mkv", "ffv1", "h264-mp4")],
)
def test_an_encoder_that_is_missing_is_named_with_a_format_of_the_other_encoder(monkeypatch, name, codec, other):
    def missing(name, mode):
        raise UnknownCodecError(name)

    monkeypatch.setattr(formats, "Codec", missing)
    with pytest.raises(CodecError, match=rf"has no encoder {codec}, which {name} needs; choose {other},"):
        check_format(name, 64, 64)


@pytest.mark.skipif(os.name == "nt", reason="no limit for the size of files there")
@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path):
    """The system refuses a file that grows too large, like on a full disk."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(VICTIM.parent)!r})
from pathlib import Path
from toy import Toy, run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
class Large(Toy):
    def sample(self, clip, *rest):
        if clip == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return super().sample(clip, *rest)
try:
    run(Path(sys.argv[1]), 4, toy=Large())
except Exception as error:
    print(type(error).__name__, error)
"""
    arguments = [sys.executable, "-P", "-c", script, str(tmp_path)]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.startswith("DiskFullError render: there is no space left"), ended.stdout + ended.stderr
    (folder,) = tmp_path.iterdir()
    assert not list(folder.rglob("*.partial"))
    toy = Toy()
    run(tmp_path, 4, toy=toy)
    assert toy.sampled == [(2, 0), (3, 0)]
    assert issubclass(DiskFullError, ValueError)


def test_segments_of_other_settings_are_not_joined(tmp_path):
    from stillmotion.rendering.segments import join, segment_writer

    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path, size in zip(paths, (SIZE, 2 * SIZE), strict=True):
        with segment_writer(path, output().kind, output().fps) as writer:
            writer.write(np.zeros((2, size, size, 3), dtype=np.uint8))
    with pytest.raises(CodecError, match=r"b\.mp4 was encoded with other settings"):
        join(paths, tmp_path / "c.mp4", output().kind, output().fps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_the_render_reads_states_from_the_disk(tmp_path):
    """The state of a clip is read from its file even within one run, so that a resumed run gets the same."""
    states = []

    class Watched(Toy):
        def sample(self, clip, take, before, step):
            states.append(before)
            return super().sample(clip, take, before, step)

    with open_job(tmp_path, "toy", IDENTITY) as (job, _):
        render(job, 3, Watched().work(), output())
        assert states[0] is None
        for clip in (0, 1):
            assert torch.equal(states[clip + 1]["end"], job.read_tensors(clip, "state.safetensors")["end"])


def test_time_left_is_that_of_the_work_that_is_left():
    now = [100.0]
    clock = Clock(4.0, lambda: now[0])
    assert clock.seconds_left(0.0) is None
    now[0] = 110.0
    assert clock.seconds_left(1.0) == pytest.approx(30)
    assert format_time(30.2) == "30 s"
