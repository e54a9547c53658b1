"""The mask viewer: masks of existing frames, and their curves."""

import pytest
import torch

from .test_autoregressive import SIZE, artv, conditioning, given_frame, picture

__all__ = ["artv"]  # the fixture


@pytest.fixture
def masks(tiny_sd, tiny_vae, artv):
    from stillmotion.model_patches.comfy_host.artv.masks import image_masks

    def find(images, percents=(0.25, 0.75), **changes):
        options = {"level": 200, "seed": 1} | changes
        return image_masks(tiny_sd, artv, tiny_vae, conditioning(1), images, percents=percents, **options)

    return find


def frames(count=4):
    return torch.cat([picture(seed) for seed in range(count)])


@pytest.mark.slow
def test_a_mask_for_every_level_of_every_frame_but_the_first(masks):
    m = masks(frames())
    assert m.shape == (3, 2, SIZE // 8, SIZE // 8)
    assert m.min() > 0
    assert m.max() < 1
    assert m.std((2, 3)).min() > 1e-3
    assert torch.equal(m, masks(frames()))
    more = masks(frames(), (0.75,))
    torch.testing.assert_close(more[:, 0], m[:, 1], rtol=0, atol=1e-6)


def test_a_frame_has_the_two_before_it_as_references(masks, tiny_sd, tiny_vae, artv, monkeypatch):
    from stillmotion.model_patches.comfy_host.artv import masks as artv_views
    from stillmotion.model_patches.comfy_host.artv.apply import apply_artv

    calls = []
    monkeypatch.setattr(artv_views, "apply_artv", lambda *a, **k: calls.append(a[2]) or apply_artv(*a, **k))
    images = frames()
    masks(images)
    y = [tiny_sd.model.process_latent_in(tiny_vae.encode(image))[0] for image in images.split(1)]
    for inputs, (newer, older) in zip(calls, ((0, 0), (1, 0), (2, 1)), strict=True):
        torch.testing.assert_close(inputs.references, torch.stack([y[newer], y[older]]))
        torch.testing.assert_close(inputs.anchor, y[0])
        assert inputs.level == given_frame().level


def test_one_frame_has_no_mask(masks):
    with pytest.raises(ValueError, match="the input has 1 frame, but a mask needs the previous frame"):
        masks(frames(1))


def test_the_curves_are_those_of_the_masks():
    from stillmotion.evaluation.drawing.masks import curves, draw_masks, masks_text

    masks = torch.zeros(3, 2, 4, 4)
    masks[:, 1, :, :2] = 1  # half of the image
    assert curves(masks) == {"mean": [0.0, 0.5], "contrast": [0.0, 0.5]}
    assert masks_text(masks, (0.25, 0.75)).splitlines()[2] == "75 %: mean 0.5000  contrast 0.5000"
    sheet = draw_masks(masks, (0.25, 0.75))
    assert sheet.width >= 960
    assert len(set(sheet.tobytes())) > 20
