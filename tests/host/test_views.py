"""The view nodes in ComfyUI: they draw their input, and their messages say what to do."""

import importlib
from fractions import Fraction

import pytest
import torch

from stillmotion.model_patches.harivo.mitigating import Config


@pytest.fixture
def random_noise(comfy):
    """random_noise(seed): ComfyUI's own NOISE."""
    importlib.import_module("nodes")
    return importlib.import_module("comfy_extras.nodes_custom_sampler").Noise_RandomNoise


def test_a_slice_is_shown_on_the_node_and_handed_on(views, tmp_path):
    images = torch.rand(6, 32, 48, 3)
    output = views.XTSlice.execute(images, "row", 0.5)
    image, measures = output.result
    assert image.shape[0] == 1
    assert image.shape[3] == 3
    assert 0 <= image.min() <= image.max() <= 1
    (file,) = output.ui.as_dict()["images"]
    assert (tmp_path / file["filename"]).is_file()
    expected = images.diff(dim=0).abs().mean().item()
    assert f"{expected:.4f}" in measures
    assert measures.startswith("6 frames")


def test_a_single_image_has_a_slice_but_no_measures(views):
    _, measures = views.XTSlice.execute(torch.rand(1, 32, 48, 3), "column", 0.2).result
    assert "nan" not in measures
    assert "one frame" in measures


def test_a_video_is_read_frame_by_frame_with_progress(views, comfy):
    types = importlib.import_module("comfy_api.v0_0_2")
    images = torch.linspace(0, 1, 12)[:, None, None, None].expand(-1, 32, 48, 3)
    jumped = torch.cat([images[:8] * 0.4, images[8:]])
    video = types.InputImpl.VideoFromComponents(types.Types.VideoComponents(images=jumped, frame_rate=Fraction(8)))
    steps = []
    importlib.import_module("comfy.utils").set_progress_bar_global_hook(lambda at, total, *_, **__: steps.append(at))
    try:
        output = views.VideoContinuity.execute(video, 4)
    finally:
        importlib.import_module("comfy.utils").set_progress_bar_global_hook(None)
    image, measures = output.result
    assert image.shape[0] == 1
    assert (steps[0], steps[-1]) == (1, 12)  # ComfyUI drops updates that follow too quickly
    head, *clips = measures.splitlines()
    assert head.startswith("12 frames, 3 whole clips of 4")
    seams = [float(line.split("seam ")[1].split()[0]) for line in clips[1:]]
    assert seams[0] < 1.5  # the slope continues; the codec is lossy
    assert seams[1] > 4  # at the jump


def test_a_video_that_is_read_can_be_cancelled(views, comfy):
    management = importlib.import_module("comfy.model_management")
    from stillmotion.model_patches.comfy_host.views import with_progress

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        next(with_progress(iter([torch.zeros(1)]), 1))
    assert not management.processing_interrupted()


def test_the_plot_is_of_the_run_that_made_the_latent(views, tiny_sd, run_sampler):
    from stillmotion.model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient

    patched, readout = apply_mitigating_gradient(tiny_sd, Config(alpha=20_000.0), frames=8)
    with pytest.raises(ValueError, match="There is no record of a run"):
        views.MitigatingGradientPlot.execute({"samples": torch.zeros(8, 4, 8, 8)}, readout)
    coarse, fine = run_sampler(patched, steps=2), run_sampler(patched, steps=6)
    (one,), (other,) = (views.MitigatingGradientPlot.execute({"samples": s}, readout).result for s in (coarse, fine))
    (again,) = views.MitigatingGradientPlot.execute({"samples": coarse}, readout).result
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    (changed,) = views.MitigatingGradientPlot.execute({"samples": coarse * 2}, readout).result
    assert changed.shape[1] > other.shape[1]  # a further line reports it


def test_the_noise_of_comfyui_is_normal_and_a_repeated_one_is_not(views, random_noise):
    empty = {"samples": torch.zeros(96 * 8, 4, 8, 8)}
    _, table = views.NoiseNormality.execute(empty, 8, random_noise(3)).result
    row = table.splitlines()[1].split()
    assert row[:3] == ["noise", "96", "2048"]
    assert float(row[6]) > 85
    repeated = torch.randn(96, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(-1, 8, -1, -1, -1)
    _, table = views.NoiseNormality.execute({"samples": repeated.flatten(0, 1)}, 8).result
    row = table.splitlines()[1].split()
    assert row[0] == "latent"
    assert row[5] == "+1.000"
    assert float(row[6]) < 60


def test_latents_with_a_frame_axis_have_their_own_frames(views):
    from stillmotion.model_patches.comfy_host.views import noise_clips

    video = torch.randn(3, 4, 5, 8, 8)
    clips = noise_clips({"samples": video}, None, 16)
    assert torch.equal(clips[1, 2], video[1, :, 2])


def test_untestable_noise_is_refused_with_the_reason(views):
    with pytest.raises(ValueError, match="noise normality: the batch has 10 latents"):
        views.NoiseNormality.execute({"samples": torch.zeros(10, 4, 8, 8)}, 4)
    with pytest.raises(ValueError, match="all numbers of a sample are equal"):
        views.NoiseNormality.execute({"samples": torch.zeros(8, 4, 8, 8)}, 4)
