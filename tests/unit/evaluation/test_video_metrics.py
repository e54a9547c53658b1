"""FVD, IS, C3D, SSIM and the pocket metrics: closed forms, published implementations, and the required clips."""

import math

import pytest
import torch
import torch.nn.functional as F

from stillmotion.evaluation.judges.judge import load_judge
from stillmotion.evaluation.judges.video_judge import load_video_judge
from stillmotion.evaluation.metrics.first_frame import first_frame_ssim
from stillmotion.evaluation.metrics.pocket_metrics import (
    PocketClipSim,
    PocketFirstFrameClip,
    PocketFirstFrameSsim,
    PocketFvd,
    PocketInceptionScore,
)
from stillmotion.evaluation.metrics.video_metrics import (
    FirstFrameSsim,
    VideoSample,
    check_counts,
    distance,
    resize_and_crop,
)
from stillmotion.evaluation.networks import c3d
from stillmotion.evaluation.networks.c3d import C3D, VideoClasses
from stillmotion.evaluation.networks.inception import inception_score
from stillmotion.evaluation.networks.loading import MetricError
from stillmotion.training.data import sprites
from stillmotion.training.metrics import judging
from stillmotion.training.metrics.pocket import labels_of


def test_the_distance_of_gaussians_is_the_closed_form():
    """|difference of means|^2 + sum (s_a - s_b)^2 for diagonal covariances; here 12 * (1 + 4)."""
    g = torch.Generator().manual_seed(1)
    a = torch.randn(20_000, 12, generator=g, dtype=torch.float64)
    b = 1 + 3 * torch.randn(20_000, 12, generator=g, dtype=torch.float64)
    assert distance(a, b, 2).value == pytest.approx(12 * (1 + 4), rel=0.03)
    assert distance(a, a, 2).value == pytest.approx(0, abs=1e-8)


def test_too_few_videos_say_how_many_are_needed():
    with pytest.raises(
        MetricError, match=r"FVD: there are 12 videos and 500 reference videos; give 401 of each .*--few"
    ):
        check_counts("FVD", 400, 12, 500, few=False)
    check_counts("FVD", 400, 12, 500, few=True)
    with pytest.raises(MetricError, match="give 2 of each"):
        check_counts("FVD", 400, 1, 500, few=True)


def test_the_inception_score_of_known_distributions():
    assert inception_score(torch.full((20, 7), 1 / 7), 2) == pytest.approx(1)
    assert inception_score(torch.eye(7).repeat(4, 1), 4) == pytest.approx(7)
    # two classes, told with the certainty p: exp(ln 2 - H(p))
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert inception_score(p, 1) == pytest.approx(2 / math.exp(entropy))
    halves = torch.cat([torch.eye(3).repeat(2, 1), torch.eye(3)[:1].repeat(6, 1)])
    assert inception_score(halves, 2) == pytest.approx((3 + 1) / 2)
    with pytest.raises(ValueError, match="for 3 parts"):
        inception_score(p, 3)


def test_c3d_has_the_sizes_of_the_paper():
    with torch.device("meta"):
        assert sum(p.numel() for p in C3D().parameters()) == 78_409_573
        assert sum(p.numel() for p in C3D(487).parameters()) == 79_991_015
        assert C3D()(torch.zeros(2, 3, 16, 112, 112)).shape == (2, 101)


def test_a_narrow_c3d_is_its_layers_one_after_the_other(tmp_path):
    torch.manual_seed(0)
    network = C3D(5, hidden=24, narrow=32)
    x = torch.randn(1, 3, 16, 112, 112)
    w, y = network.state_dict(), x
    for layer, pool in (("1a", (1, 2, 2)), ("2a", 2), ("3a", 0), ("3b", 2), ("4a", 0), ("4b", 2), ("5a", 0)):
        y = F.conv3d(y, w[f"conv{layer}.weight"], w[f"conv{layer}.bias"], padding=1).relu()
        y = F.max_pool3d(y, pool) if pool else y
    y = F.conv3d(y, w["conv5b.weight"], w["conv5b.bias"], padding=1).relu()
    y = F.max_pool3d(F.pad(y, (0, 1, 0, 1)), 2).flatten(1)  # 7 x 7 -> 4 x 4
    for layer in ("fc6", "fc7"):
        y = F.linear(y, w[f"{layer}.weight"], w[f"{layer}.bias"]).relu()
    torch.testing.assert_close(network(x), F.linear(y, w["fc8.weight"], w["fc8.bias"]))


def test_c3d_sees_blue_first_less_the_mean_corner_to_corner():
    frames = torch.zeros(16, 3, 20, 30, dtype=torch.uint8)
    frames[:, 0, 0, 0], frames[:, 2, -1, -1] = 200, 100
    inputs = c3d.pixels(frames)
    assert inputs.shape == (3, 16, 112, 112)
    assert (inputs[2, 3, 0, 0] + c3d.MEAN[2]).item() == pytest.approx(200)
    assert (inputs[0, 3, -1, -1] + c3d.MEAN[0]).item() == pytest.approx(100)
    assert (inputs[1, 0, 5, 5] + c3d.MEAN[1]).item() == pytest.approx(0, abs=1e-4)


def test_c3d_takes_the_names_of_its_ports_and_refuses_other_files(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(c3d, "C3D", lambda classes: C3D(classes, hidden=24, narrow=32))
    state = C3D(5, hidden=24, narrow=32).state_dict()
    ported = {n.replace("conv1a.", "conv1.").replace("conv2a.", "conv2."): v for n, v in state.items()}
    native, port = tmp_path / "own.pt", tmp_path / "port.pt"
    torch.save(state, native)
    torch.save({"state_dict": {f"module.{n}": v for n, v in ported.items()}}, port)
    clip = [torch.randint(0, 256, (16, 3, 24, 24), dtype=torch.uint8)]
    probabilities = VideoClasses(native)(clip)
    assert probabilities.sum().item() == pytest.approx(1)
    assert torch.equal(probabilities, VideoClasses(port)(clip))
    torch.save({"fc8.bias": torch.zeros(5)}, native)
    for path, message in (
        (native, "is not the right C3D: conv1a.weight is missing"),
        (None, "--c3d is missing; give a C3D fine-tuned"),
    ):
        with pytest.raises(MetricError, match=message):
            VideoClasses(path)


def test_ssim_of_equal_pictures_is_one_and_falls_with_noise():
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(1, 3, 8, 8), size=(64, 64), mode="bicubic").clamp(0, 1)
    noise = torch.randn_like(x)
    values = [first_frame_ssim(x, (x + s * noise).clamp(0, 1)).item() for s in (0.0, 0.05, 0.2)]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[0] > values[1] > values[2]
    torch.testing.assert_close(first_frame_ssim(x, 1 - x), first_frame_ssim(1 - x, x))
    # two flat pictures: the light term alone, (2ab + C1) / (a^2 + b^2 + C1)
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert first_frame_ssim(a, b).item() == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match=r"h and w of 11 or more"):
        first_frame_ssim(a[..., :8], b[..., :8])


def test_the_given_image_comes_to_the_size_of_the_video_by_its_middle():
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    image[:, :, 14:66] = 255  # the middle, 20 to 60, and the surroundings within the filter
    frames = torch.full((2, 3, 20, 20), 255, dtype=torch.uint8)
    torch.testing.assert_close(resize_and_crop(image, 20, 20), torch.ones(3, 20, 20), atol=1e-3, rtol=0)
    assert FirstFrameSsim().rows([VideoSample("a", frames, image=image)]).item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(MetricError, match="a has no source image"):
        FirstFrameSsim().rows([VideoSample("a", frames)])


@pytest.fixture(scope="module")
def judges(root):
    pocket = root / "pocket"
    return load_judge(pocket / "judge.safetensors"), load_video_judge(pocket / "video_judge.safetensors")[0]


@pytest.fixture(scope="module")
def truth():
    prompts = sprites.held_out(12)
    clips = [(clip * 255).round().byte() for clip in judging.rendered(prompts)]
    return [
        VideoSample(str(i), c, sprites.caption(p), c[0]) for i, (p, c) in enumerate(zip(prompts, clips, strict=True))
    ]


def swapped(videos):
    """Each clip with the caption and image of the next clip."""
    return [
        VideoSample(f.name, f.frames, g.caption, g.image) for f, g in zip(videos, videos[1:] + videos[:1], strict=True)
    ]


@pytest.mark.slow
def test_the_pockets_metrics_know_true_clips_from_wrong_ones(judges, truth):
    judge, video_judge = judges
    for metric in (PocketClipSim(judge, labels_of), PocketFirstFrameClip(judge), PocketFirstFrameSsim()):
        good, bad = metric.rows(truth), metric.rows(swapped(truth))
        assert good.mean() > 0.97, metric.title
        assert good.mean() > bad.mean() + 0.02, metric.title
    score = PocketInceptionScore(video_judge)
    rows = score.rows(truth)
    assert rows.shape == (12, 6 * 8 * 8)
    torch.testing.assert_close(rows.sum(1), torch.ones(12))
    varied = score.compute(rows, None, 20).value
    assert 6 < varied <= 12
    assert score.compute(rows[:1].expand(12, -1), None, 20).value == pytest.approx(1)
    features = PocketFvd(video_judge, few=True)
    real = features.rows(truth)
    assert features.compute(real, real, 5).value == pytest.approx(0, abs=1e-4)
    backwards = features.rows([VideoSample(f.name, f.frames.flip(0)) for f in truth])
    assert features.compute(backwards, real, 5).value > 1


def test_captions_are_read_in_the_pockets_words():
    assert labels_of("a big pink heart rising over a green field") == {"colour": 7, "shape": 7, "background": 4}
    assert labels_of("a heart, at sunset") == {"shape": 7, "background": 5}
    assert labels_of("a dog in a garden") == {}


def test_a_caption_of_another_world_has_no_figure(judges, truth):
    metric = PocketClipSim(judges[0], labels_of)
    rows = metric.rows([truth[0], VideoSample("x", truth[0].frames, "a dog in a garden")])
    assert rows.isnan().tolist() == [False, True]
    assert metric.compute(rows, None, 10).value == pytest.approx(rows[0].item())
