"""Planning is fast, bounded and cancelled at once, and a damaged job never causes a bare Python error."""

import json
import shutil
import time

import pytest

from stillmotion.rendering import lock
from stillmotion.rendering.errors import BusyError, NotWritableError, RenderError
from stillmotion.rendering.job import clean, open_job
from stillmotion.rendering.loop import parse_takes
from stillmotion.rendering.names import check_name
from stillmotion.rendering.planning import LOOK_EVERY, MAX_CLIPS, MAX_FRAMES, check_length, plan

from .toy import IDENTITY, Heard, Toy, output, run


class Cancelled(Exception):
    pass


class Cancel:
    """Raises an exception at the n-th check."""

    def __init__(self, looks):
        self.looks = looks

    def __call__(self):
        self.looks -= 1
        if self.looks < 0:
            raise Cancelled


@pytest.fixture
def job(tmp_path):
    with open_job(tmp_path, "toy", IDENTITY) as (job, _):
        yield job


def test_the_time_to_plan_is_linear_in_the_clips(job):
    def seconds(clips):
        start = time.process_time()
        plan(job, clips, output(), {}, lambda _clip: "")
        return time.process_time() - start

    seconds(1000)
    small, large = seconds(20_000), seconds(200_000)
    assert large < 30 * small + 0.1
    assert large < 1.0  # a million clips in a fraction of the two seconds that they may take


@pytest.mark.parametrize("looks", [0, 3])
def test_planning_stops_when_the_render_is_cancelled(job, looks):
    queries = []
    with pytest.raises(Cancelled):
        plan(job, 10 * LOOK_EVERY, output(), {}, lambda clip: queries.append(clip) or "", Cancel(looks))
    assert len(queries) == looks * LOOK_EVERY


def test_checking_the_files_of_a_job_stops_when_the_render_is_cancelled(tmp_path):
    run(tmp_path, 2)
    looks = []
    with open_job(tmp_path, "toy", IDENTITY) as (job, _):
        plan(job, 2, output(), {}, lambda _clip: "", lambda: looks.append(None))
    assert len(looks) >= 2 * 3  # for each of the latents, the state and the segment of each clip


def test_a_video_that_is_too_long_is_refused_with_the_number(tmp_path):
    toy = Toy()
    with pytest.raises(RenderError, match=r"would have 1,000,001 clips, but one job can have at most 1,000,000"):
        run(tmp_path, MAX_CLIPS + 1, toy=toy)
    with pytest.raises(RenderError, match=r"would have 99,999,999,999 clips"):
        run(tmp_path, 99_999_999_999, toy=toy)
    assert toy.sampled == []


@pytest.mark.parametrize(
    ("clips", "frames", "doubled"), [(MAX_CLIPS, 16, 0), (1000, MAX_FRAMES // 1000, 0), (MAX_CLIPS, 17, 1)]
)
def test_the_longest_video_is_allowed_and_one_clip_more_is_not(clips, frames, doubled):
    check_length(clips - (doubled > 0), output(frames=frames, doubled=doubled))
    with pytest.raises(RenderError, match="but one job can have at most"):
        check_length(clips + 1, output(frames=frames, doubled=doubled))


def test_new_clips_with_equal_inputs_have_one_plan_in_common(job):
    plans = plan(job, 5, output(), {1: 2}, lambda clip: "ab" if clip == 3 else "")
    assert [p.take for p in plans] == [0, 2, 0, 0, 0]
    assert all(p.sample and p.encode for p in plans)
    assert plans[0] == plans[2]
    assert len({p.inputs for p in plans}) == 3  # none, and those of clip 4 also for clip 5
    assert len({id(p) for p in plan(job, 1000, output(), {}, lambda clip: "")}) == 1


def test_clips_beyond_99999_are_in_the_order_of_their_numbers(job):
    for clip in (99_998, 99_999, 7):
        job.write_record(clip, job.record(clip))
    (job.folder / "clips" / "1x").mkdir()
    assert list(job.finished()) == [7, 99_998, 99_999]


def test_only_folders_of_a_clip_with_a_record_are_finished_clips(job):
    """Clips are counted from 1; a clip that was being sampled has files but no record."""
    job.write_record(1, job.record(1))
    for name in ("00000", "00003", "0004", "00000005"):
        (job.folder / "clips" / name).mkdir()
    for name in ("00000", "0004", "00000005"):
        (job.folder / "clips" / name / "clip.json").write_text("{}")
    (job.folder / "clips" / "00003" / "state.safetensors").touch()
    assert list(job.finished()) == [1]


@pytest.mark.parametrize(
    "name", ["growing", "Growing", "CON", "con", "nul.x", "LPT1", "com9", "猫" * 80, "é" * 79 + "猫" * 30]
)
def test_a_name_that_some_system_does_not_take_is_refused_before_anything_is_sampled(tmp_path, name):
    toy = Toy()
    with pytest.raises(RenderError, match="the name"):
        run(tmp_path, 1, toy=toy, name=name)
    assert toy.sampled == []
    assert not list(tmp_path.iterdir())


def test_names_are_at_most_80_characters_and_200_bytes():
    check_name("a" * 80)
    check_name("é" * 80)
    check_name("猫" * 66 + "ab")  # 200 bytes
    with pytest.raises(RenderError, match=rf"the name is '{'b' * 81}'; use at most 80 letters"):
        check_name("b" * 81)
    with pytest.raises(RenderError, match=r"has 201 bytes, and .* at most 200 long; use at most 66 characters"):
        check_name("猫" * 67)
    with pytest.raises(RenderError, match=rf"the name is '{'b' * 100}';"):
        check_name("b" * 300)


@pytest.mark.parametrize("name", ["console", "growing up", "猫" * 60, "a.b"])
def test_other_names_are_taken(tmp_path, name):
    check_name(name)
    _, path, _ = run(tmp_path, 1, name=name)
    assert path.name == f"{name}.mp4"
    assert path.is_file()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "null", "[" * 100_000, '{"version": 1}', '{"version": 1, "identity": {}}', b"\xff\xfe", "1" * 5000],
)
def test_the_damaged_manifest_of_another_job_of_that_name_does_not_stop_a_new_one(tmp_path, content):
    neighbour, _, _ = run(tmp_path, 1)
    text = content if isinstance(content, bytes) else content.encode()
    (neighbour / "manifest.json").write_bytes(text)
    _, path, _ = run(tmp_path, 1, identity={"seed": 9})
    assert path.is_file()
    if text != b'{"version": 1, "identity": {}}':
        with pytest.raises(RenderError, match=r"manifest\.json is damaged; delete that folder"):
            run(tmp_path, 1)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"take": 1e999, "files": {}}', '{"take": 0, "files": 5}', "null", b"\xff"]
)
def test_a_clip_whose_record_is_damaged_is_rendered_again(tmp_path, content):
    folder, path, _ = run(tmp_path, 2)
    before = path.read_bytes()
    text = content if isinstance(content, bytes) else content.encode()
    (folder / "clips" / "00002" / "clip.json").write_bytes(text)
    toy = Toy()
    run(tmp_path, 2, toy=toy)
    assert toy.sampled == [(1, 0)]
    assert path.read_bytes() == before


def test_a_job_folder_that_is_deleted_during_the_render_is_named(tmp_path):
    class Deleting(Toy):
        def sample(self, clip, take, before, step):
            if clip == 1:
                shutil.rmtree(next(tmp_path.iterdir()))
            return super().sample(clip, take, before, step)

    with pytest.raises(RenderError, match="removed or changed during the render; queue again"):
        run(tmp_path, 2, toy=Deleting())
    _, path, _ = run(tmp_path, 2)
    assert path.is_file()


def test_a_file_that_is_deleted_during_the_render_is_named(tmp_path):
    class Deleting(Toy):
        def sample(self, clip, take, before, step):
            if clip == 1:
                next(tmp_path.rglob("00001/segment.mp4")).unlink()
            return super().sample(clip, take, before, step)

    with pytest.raises(RenderError, match="was removed during the render"):
        run(tmp_path, 2, toy=Deleting())


@pytest.mark.parametrize("name", ["latents", "state"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_never_recorded(tmp_path, name, value):
    class Broken(Toy):
        def sample(self, clip, take, before, step):
            latents, state = super().sample(clip, take, before, step)
            if clip == 1:
                (latents if name == "latents" else state["end"]).flatten()[3] = value
            return latents, state

    with pytest.raises(RenderError, match=r"clip 2 contains NaN or infinite values; the clips before it are saved"):
        run(tmp_path, 3, toy=Broken())
    toy = Toy()
    run(tmp_path, 3, toy=toy)
    assert toy.sampled == [(1, 0), (2, 0)]


def test_takes_are_counted_as_a_reader_counts():
    assert parse_takes("") == parse_takes(" , ") == {}
    assert parse_takes("7") == {6: 1}
    assert parse_takes(" 7, 9:2,1 : 0 ") == {6: 1, 8: 2, 0: 0}
    assert parse_takes("999999999:999999999") == {999_999_998: 999_999_999}
    with pytest.raises(RenderError, match=f"clips contains '{'9' * 100}';"):
        parse_takes("2, " + "9" * 150)
    with pytest.raises(RenderError, match="clips contains '0'"):
        parse_takes("0")


@pytest.mark.parametrize("text", ["1" * 5000, "2:" + "9" * 5000, "9" * 10, "-1", "1:x"])
def test_numbers_of_clips_that_no_video_has_are_refused(text):
    with pytest.raises(RenderError, match="clips contains"):
        parse_takes(text)


def test_only_another_process_is_called_another_process(tmp_path, monkeypatch):
    """On a network disk without locks the error is about locks."""

    def without_locks(file):
        raise OSError(95, "Operation not supported")

    def in_use(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lock, "_take", without_locks)
    with pytest.raises(RenderError, match="cannot be locked") as error:
        run(tmp_path, 1)
    assert not isinstance(error.value, BusyError)
    monkeypatch.setattr(lock, "_take", in_use)  # as msvcrt.locking answers
    with pytest.raises(BusyError, match="another process"):
        run(tmp_path, 1)


def test_a_growing_file_that_a_player_has_open_does_not_stop_a_render(tmp_path, monkeypatch):
    """Windows neither replaces nor deletes an open file."""
    from pathlib import Path

    from stillmotion.rendering import loop

    class Locked(loop.JoinedVideo):
        def __init__(self, path, *arguments, **options):
            if path.name.startswith("growing"):
                raise PermissionError(13, "in use", str(path))
            super().__init__(path, *arguments, **options)

    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name.startswith("growing"):
            raise PermissionError(13, "in use", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(loop, "JoinedVideo", Locked)
    monkeypatch.setattr(Path, "unlink", refuse)
    _, path, watch = run(tmp_path, 2)
    assert path.is_file()
    assert any("growing.mp4 is open in another program" in remark for remark in watch.remarks)


def test_a_video_that_a_player_has_open_says_what_to_close(tmp_path, monkeypatch):
    import os

    replace = os.replace

    def refuse(source, target):
        if str(target).endswith("toy.mp4"):
            raise PermissionError(13, "in use", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(NotWritableError, match="close the program that has a file of it open"):
        run(tmp_path, 1)
    monkeypatch.undo()
    toy = Toy()
    run(tmp_path, 1, toy=toy)
    assert toy.sampled == []


def test_an_error_about_a_file_of_the_sampler_stays_that_error(tmp_path):
    class Missing(Toy):
        def sample(self, clip, take, before, step):
            raise FileNotFoundError(2, "No such file", "/a/model.safetensors")

    with pytest.raises(FileNotFoundError, match="No such file"):
        run(tmp_path, 1, toy=Missing())


def test_the_last_state_is_kept_when_others_are_cleaned(tmp_path):
    folder, _, _ = run(tmp_path, 3)
    with open_job(tmp_path, "toy", IDENTITY) as (job, _):
        clean(job)
    assert [path.parent.name for path in sorted(folder.rglob("state.safetensors"))] == ["00003"]


def test_the_checks_of_a_render_are_those_of_its_watch(tmp_path):
    class Stopping(Heard):
        def check(self):
            raise Cancelled

    from stillmotion.rendering.loop import render

    toy = Toy()
    with open_job(tmp_path, "toy", IDENTITY) as (job, _), pytest.raises(Cancelled):
        render(job, 3, toy.work(), output(), watch=Stopping())
    assert toy.sampled == []
    assert json.loads((job.folder / "manifest.json").read_text(encoding="utf-8"))["name"] == "toy"


def test_the_benchmark_measures_the_named_quantities(tmp_path):
    from argparse import Namespace

    from stillmotion.benchmarks.reliability import bench_plan

    figures = bench_plan.measure(tmp_path, Namespace(clips=2000, lines=20, mb=1))
    assert figures["clips_per_second"] > 10_000
    assert 0 < figures["cancel_seconds"] < 0.5
    looks = bench_plan.Looks()
    looks.time(lambda: time.sleep(0.05))
    assert looks.longest >= 0.05
