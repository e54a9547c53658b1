"""The command `eval`: it makes a report about folders of videos; missing inputs are reported before any work."""

import json
import logging
import warnings
from fractions import Fraction

import av
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stillmotion.evaluation.networks.clip_similarity import Clip
from stillmotion.evaluation.networks.loading import MetricError, sha256
from stillmotion.training.__main__ import main
from stillmotion.training.data import footage, sprites
from stillmotion.training.data.footage import UnreadableVideo, Video, prompt_of
from stillmotion.training.metrics import pocket
from stillmotion.training.metrics.command import Request, evaluate

COUNT = 5


def write_video(path, frames, metadata=None):
    """Write a lossless video of frames (f, 3, h, w) in bytes."""
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream("ffv1", rate=Fraction(8))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[-2:], "bgr0"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def rendered_clips():
    prompts = sprites.held_out(COUNT)
    clips = [(sprites.render(p, sprites.frame_times(16)) * 255).round().byte() for p in prompts]
    return [sprites.caption(p) for p in prompts], clips


@pytest.fixture(scope="module")
def video_folder(rendered_clips, tmp_path_factory):
    """Five rendered clips: four files and one folder of images, with caption files."""
    folder = tmp_path_factory.mktemp("videos")
    for i, (caption, clip) in enumerate(zip(*rendered_clips, strict=True)):
        (folder / f"clip{i}.txt").write_text(caption)
        if i:
            write_video(folder / f"clip{i}.mkv", clip)
            continue
        (folder / "clip0").mkdir()
        for j, frame in enumerate(clip):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / "clip0" / f"{j:03d}.png")
    return folder


def run(*arguments):
    return main(["eval", *map(str, arguments)])


def read(out):
    return json.loads((out / "evaluation.json").read_text(encoding="utf-8"))


class Toy(torch.nn.Module):
    """A tiny network with the interface of i3d_torchscript.pt."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return x.float().mean((2, 3, 4)) if rescale and resize and return_features else torch.zeros(1, 3)


class ToyClasses(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float().mean((2, 3, 4)) / 32).softmax(1)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Toy()), str(folder / "i3d.pt"))
        torch.jit.save(torch.jit.script(ToyClasses()), str(folder / "c3d.pt"))
    return folder


def test_all_metrics_of_the_papers_in_one_report(video_folder, networks, clip_folder, tmp_path, rendered_clips):
    metrics = "fvd,is,clipsim,fff_clip,fff_ssim"
    files = ["--i3d", networks / "i3d.pt", "--c3d", networks / "c3d.pt", "--clip", clip_folder]
    assert (
        run(
            video_folder,
            "--metrics",
            metrics,
            "--reference",
            video_folder,
            "--few",
            "--splits",
            2,
            "--out",
            tmp_path,
            *files,
        )
        == 0
    )
    report = read(tmp_path)
    values = report["metrics"]
    assert list(values) == metrics.split(",")
    assert values["fvd"]["value"] == pytest.approx(0, abs=1e-6)  # the videos are their own reference
    assert 1 < values["is"]["value"] < 3
    for name in ("fff_clip", "fff_ssim"):
        assert values[name]["value"] == pytest.approx(1, abs=1e-4)
    clip = Clip(clip_folder)
    expected = [
        float((clip.images(frames / 255) @ clip.text(caption).T).mean())
        for caption, frames in zip(*rendered_clips, strict=True)
    ]
    assert values["clipsim"]["value"] == pytest.approx(sum(expected) / COUNT, abs=1e-5)
    assert values["clipsim"]["low"] <= values["clipsim"]["value"] <= values["clipsim"]["high"]
    assert values["fvd"]["layout"]["sha256"] == sha256(networks / "i3d.pt")
    assert values["clipsim"]["layout"]["sha256"] == sha256(clip_folder / "model.safetensors")
    assert report["videos"]["count"] == report["reference"]["count"] == COUNT
    assert report["videos"]["sizes"] == {"64x64": COUNT}
    assert report["videos"]["frames"] == 16
    assert {"torch", "transformers", "python"} <= report["versions"].keys()
    page = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert all(title in page for title in ("| FVD |", "| IS |", "| CLIPSIM |", "| FFF-CLIP |", "| FFF-SSIM |"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "evaluation.md"]


def test_clip_is_transformers_own(clip_folder):
    """The cosine similarities equal those of CLIPModel's forward pass."""
    from transformers import CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    clip, frames = Clip(clip_folder), torch.rand(3, 3, 40, 56)
    model: CLIPModel = CLIPModel.from_pretrained(clip_folder).eval()
    ids = CLIPTokenizer.from_pretrained(str(clip_folder))("a red star", return_tensors="pt").input_ids
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=clip.pixels(frames))
    expected = output.logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(clip.images(frames) @ clip.text("a red star").T, expected, rtol=1e-4, atol=1e-5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(clip.images(frames)[order], clip.images(frames[order]))
    assert F.cosine_similarity(clip.images(frames[:1]), clip.images(frames[:1])).item() == pytest.approx(1)


def test_the_pockets_metrics_need_no_file(video_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pocket, "RENDERED", 12)
    monkeypatch.setattr(pocket.rendered, "__defaults__", (12,))
    with caplog.at_level(logging.INFO):
        assert run(video_folder, "--few", "--out", tmp_path / "report", "--draws", 20) == 0
    report = read(tmp_path / "report")
    assert list(report["metrics"]) == ["pocket_fvd", "pocket_is", "pocket_clipsim"]
    assert report["metrics"]["pocket_clipsim"]["value"] > 0.97
    assert set(report["skipped"]) == {"pocket_fff_clip", "pocket_fff_ssim"}
    assert "give --images FOLDER" in report["skipped"]["pocket_fff_ssim"]
    assert report["reference"]["count"] == 12
    assert "videos 5/5  ETA 0h00:00" in caplog.text


def test_the_report_is_of_these_bytes_and_of_no_others(video_folder, tmp_path):
    request = Request(videos=video_folder, out=tmp_path / "a", metrics=("pocket_is",), draws=2)
    first = evaluate(request)["videos"]["sha256"]
    assert evaluate(request)["videos"]["sha256"] == first
    limited = Request(videos=video_folder, out=tmp_path / "b", metrics=("pocket_is",), draws=2, limit=4)
    assert evaluate(limited)["videos"]["sha256"] != first


def test_images_are_found_by_name_and_belong_to_their_video(video_folder, rendered_clips, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, clip in enumerate(rendered_clips[1]):
        Image.fromarray(clip[0].permute(1, 2, 0).numpy()).save(images / f"clip{i}.png")
    arguments = ["--metrics", "fff_ssim,pocket_fff_clip", "--images", images, "--out", tmp_path / "report"]
    assert run(video_folder, *arguments) == 0
    assert read(tmp_path / "report")["metrics"]["fff_ssim"]["value"] == pytest.approx(1, abs=1e-4)
    (images / "clip3.png").unlink()
    with pytest.raises(
        SystemExit, match=r"fff_ssim: 1 of 5 videos have no given image, the first is clip3; give --images"
    ):
        run(video_folder, *arguments)


def test_captions_come_from_lines_from_beside_and_from_metadata(tmp_path):
    clip = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    graph = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red star ", "clip": ["9", 0]}},
        "2": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["1", 0]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["9", 0]}},
        "4": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "negative": ["3", 0]}},
    }
    write_video(tmp_path / "graph.mkv", clip, {"prompt": json.dumps(graph)})
    write_video(tmp_path / "tag.mkv", clip, {"comment": "a blue ring"})
    write_video(tmp_path / "none.mkv", clip)
    write_video(tmp_path / "beside.mkv", clip, {"comment": "not this"})
    (tmp_path / "beside.txt").write_text("a cross\n")
    videos = footage.list_videos(tmp_path, "VIDEOS")
    captions = footage.captions(videos, None)
    assert captions == {"graph": "a red star", "tag": "a blue ring", "beside": "a cross"}
    lines = tmp_path / "captions.jsonl"
    lines.write_text('{"video": "none.mkv", "caption": "a heart"}\n\n{"video": "tag", "caption": "a dot"}\n')
    assert footage.captions(videos, lines) == captions | {"none": "a heart", "tag": "a dot"}
    lines.write_text('{"video": "none.mkv"}\n')
    with pytest.raises(MetricError, match="line 1 is not"):
        footage.captions(videos, lines)
    two = {**graph, "5": {"inputs": {"positive": ["3", 0]}}}
    for text in (json.dumps(two), "[1]", "{", '{"a": 3}', json.dumps({"4": {"inputs": {"positive": ["4", 0]}}})):
        assert prompt_of(text) == ""


def test_frames_are_read_at_a_stride_and_no_others(tmp_path):
    clip = torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1).expand(12, 3, 16, 16) * 8
    write_video(tmp_path / "a.mkv", clip)
    taken = footage.first_frames(Video("a", tmp_path / "a.mkv"), 3, 4)
    assert (taken[:, 0, 0, 0] // 8).tolist() == [0, 4, 8]
    with pytest.raises(
        UnreadableVideo, match=r"a\.mkv has 12 frames; 13 are needed for 4 at a stride of 4: give longer videos"
    ):
        footage.first_frames(Video("a", tmp_path / "a.mkv"), 4, 4)


def test_broken_and_short_videos_end_the_run_or_are_left_out_and_listed(rendered_clips, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a.mkv", rendered_clips[1][0])
    write_video(folder / "b.mkv", rendered_clips[1][1][:5])
    (folder / "c.mp4").write_bytes(b"this is no video")
    arguments = [folder, "--metrics", "pocket_is", "--out", tmp_path / "report", "--draws", 2]
    with pytest.raises(SystemExit, match=r"b\.mkv has 5 frames; 16 are needed .*--skip-damaged"):
        run(*arguments)
    assert not (tmp_path / "report").exists()
    assert run(*arguments, "--skip-damaged") == 0
    videos = read(tmp_path / "report")["videos"]
    assert videos["count"] == 1
    assert ["b.mkv has 5 frames" in videos["skipped"][0], "c.mp4 cannot be read" in videos["skipped"][1]] == [True] * 2
    (folder / "a.mkv").unlink()
    with pytest.raises(SystemExit, match=r"none of the videos can be used; the first: .*b"):
        run(*arguments, "--skip-damaged")


def test_missing_inputs_are_one_sentence_before_anything_is_read(video_folder, networks, tmp_path, monkeypatch):
    def opened(*_):
        raise AssertionError("a video was read")

    monkeypatch.setattr(footage, "first_frames", opened)
    empty, loose = tmp_path / "empty", tmp_path / "loose"
    empty.mkdir()
    loose.mkdir()
    Image.new("RGB", (16, 16)).save(loose / "0.png")
    out = ["--out", tmp_path / "report"]
    plain = tmp_path / "plain"
    plain.mkdir()
    write_video(plain / "a.mkv", torch.zeros(16, 3, 16, 16, dtype=torch.uint8))
    i3d, c3d = ["--i3d", networks / "i3d.pt"], ["--c3d", networks / "c3d.pt"]
    cases = [
        ([empty, *out], "VIDEOS .*empty has no video"),
        ([loose, *out], "put the images of each video into a folder of its own"),
        ([tmp_path / "none", *out], "is not a folder"),
        ([video_folder, *out, "--metrics", "fid"], "--metrics fid: there is no such metric; use fvd, is,"),
        ([video_folder, *out, "--metrics", ","], "--metrics is empty"),
        (
            [video_folder, *out, "--metrics", "fvd", *i3d],
            "fvd: real videos for comparison are missing; give --reference",
        ),
        (
            [video_folder, *out, "--metrics", "fvd", "--reference", video_folder, *i3d],
            "give 401 of each .*allow a biased value",
        ),
        ([video_folder, *out, "--metrics", "fvd", "--reference", video_folder], "--i3d is missing"),
        ([video_folder, *out, "--metrics", "is", *c3d], "IS: there are 5 videos for 10 splits; give 20 videos or more"),
        (
            [video_folder, *out, "--metrics", "is", *c3d, "--frames", 8],
            "needs clips of exactly 16 frames; give --frames 16",
        ),
        (
            [video_folder, *out, "--metrics", "fvd", "--reference", video_folder, *i3d, "--frames", 8, "--few"],
            "needs clips of 10 or more frames",
        ),
        (
            [plain, *out, "--metrics", "clipsim"],
            "clipsim: 1 of 1 videos have no caption, the first is a; give --captions",
        ),
        ([video_folder, *out, "--metrics", "clipsim"], "--clip is missing; give a folder with a transformers CLIP"),
        ([video_folder, *out, "--metrics", "clipsim", "--clip", empty], "config.json is missing"),
        (
            [video_folder, *out, "--metrics", "pocket_fvd"],
            "pocket FVD: there are 5 videos and 1000 reference videos; give 65 of each",
        ),
        ([video_folder, *out, "--frames", 0], "--frames 0: give 1 or more"),
        ([video_folder, *out, "--captions", tmp_path / "no.jsonl"], "there is no such file; give a file"),
        ([video_folder, *out, "--images", tmp_path / "no"], "--images .* is not a folder"),
        ([video_folder, "--out", plain / "a.mkv"], "--out .* is a file; give a folder"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit, match=message) as error:
            run(*arguments)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()
