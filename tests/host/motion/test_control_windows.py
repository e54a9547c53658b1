"""Hints, masks and texts in ComfyUI's context windows: each window gets those of its own frames."""

from typing import Any

import pytest
import torch

from .test_control_frames import conditioning, pictures, random_controlnet
from .test_motion import motion_file  # noqa: F401  the fixture of the files

FRAMES = 8


@pytest.fixture
def sample(comfy, tiny_sd, patched):
    """sample(positive, negative, length=..., overlap=0): with a motion model that changes nothing, so that frames are
    independent and windows without an overlap must equal the whole batch."""
    from comfy import context_windows
    from comfy import sample as sampling

    def run(positive, negative, *, length=None, overlap=0, steps=2, model=None):
        model = model or patched(frames=FRAMES, scale=0.0)
        if length:
            handler = context_windows.IndexListContextHandler(
                context_windows.get_matching_context_schedule("standard_static"),
                context_windows.get_matching_fuse_method("flat"),
                context_length=length,
                context_overlap=overlap,
                causal_window_fix=False,
            )
            model = model.clone()
            model.model_options["context_handler"] = handler
        noise = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            arguments: Any = (model, noise, steps, 2.0, "euler", "normal", positive, negative, torch.zeros_like(noise))
            return sampling.sample(*arguments, seed=0, disable_pbar=True)

    return run


def controlled(control, before=None):
    control.set_previous_controlnet(before)
    options = {"control": control, "control_apply_to_uncond": False}
    return conditioning(1, **options), conditioning(2, **options)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_a_controlnet_with_a_picture_per_frame(comfy, sample):
    conditions = controlled(random_controlnet().set_cond_hint(pictures(FRAMES), 0.8))
    whole = sample(*conditions)
    same(sample(*conditions, length=4), whole)
    same(sample(*conditions), whole)  # the user's ControlNet is as it was
    assert len(conditions[0][0][1]["control"].cond_hint_original) == FRAMES


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 11])
def test_other_numbers_of_pictures_are_repeated_as_without_windows(comfy, sample, count):
    conditions = controlled(random_controlnet().set_cond_hint(pictures(count), 0.8))
    same(sample(*conditions, length=4), sample(*conditions))


@pytest.mark.slow
def test_a_chain_of_controls_each_with_its_own_pictures(comfy, sample):
    from stillmotion.nodes.sampling import ControlNetFrames

    node: Any = ControlNetFrames
    first = random_controlnet(7).set_cond_hint(pictures(FRAMES, seed=9), 0.8)
    conditions = controlled(random_controlnet().copy().set_cond_hint(pictures(FRAMES), 0.8), before=first)
    limited = node.execute(*conditions, "0, 5:7", FRAMES).result
    for chain in (conditions, limited):
        same(sample(*chain, length=4), sample(*chain))


class Seen:
    """A control that records its hints. keeps: "one" stores the first hint it computes, as ComfyUI 0.30 does; "size"
    stores one for each size of the latent, and forgets them when it gets another hint."""

    def __new__(cls, keeps="one", **attributes):
        from comfy.controlnet import ControlBase

        class Recorder(ControlBase):
            def __init__(self):
                super().__init__()
                self.hints: dict[Any, torch.Tensor] = {}
                self.seen: list[Any] = []
                self.runs: list[Any] = []
                for name, value in attributes.items():
                    setattr(self, name, value)

            def set_cond_hint(self, *args, **kwargs):
                self.hints = {}
                return super().set_cond_hint(*args, **kwargs)

            def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
                hint: Any = self.cond_hint_original
                key = x_noisy.shape[2:] if keeps == "size" else 0
                hint = self.hints.setdefault(key, hint)
                self.seen.append((hint[:, 0, 0, 0].tolist(), transformer_options.get("ad_params")))
                assert self.timestep_range is not None
                return None

            def copy(self):
                clone = type(self)()
                self.copy_to(clone)
                clone.seen = self.seen
                return clone

            def cleanup(self):
                super().cleanup()
                self.hints = {}

        return Recorder()


def numbers(count=FRAMES):
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, 64, 64)


@pytest.mark.parametrize("keeps", ["one", "size"])
def test_every_window_sees_the_hints_of_its_frames_however_a_control_stores_them(comfy, sample, keeps):
    control: Any = Seen(keeps).set_cond_hint(numbers())
    sample(*controlled(control), length=4, overlap=2, steps=2)
    windows = [[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0], [4.0, 5.0, 6.0, 7.0]]
    assert [hints for hints, _ in control.seen] == windows * 2


@pytest.mark.parametrize("keeps", ["one", "size"])
def test_controlnet_frames_does_the_same(comfy, sample, keeps):
    from stillmotion.nodes.sampling import ControlNetFrames

    node: Any = ControlNetFrames
    control: Any = Seen(keeps).set_cond_hint(numbers())
    sample(*node.execute(*controlled(control), "all", FRAMES).result, length=4, steps=1)
    assert [hints for hints, _ in control.seen] == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]


def test_advanced_controlnet_cuts_its_own_hints_and_learns_the_frames(comfy, sample):
    control: Any = Seen(sub_idxs=None).set_cond_hint(numbers())
    sample(*controlled(control), length=4, steps=1)
    assert [hints for hints, _ in control.seen] == [list(range(FRAMES))] * 2
    params = [params for _, params in control.seen]
    assert [p["sub_idxs"] for p in params] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert {(p["full_length"], p["context_length"]) for p in params} == {(FRAMES, 4)}


@pytest.mark.slow
def test_ip_adapters_learn_the_frames_of_the_window_also_in_a_clip_of_a_long_video(comfy, patched, sample):
    calls: list[Any] = []

    def patch(n, context, value, options):
        calls.append(options["ad_params"]["sub_idxs"])
        return n, context, value

    model = patched(frames=FRAMES, scale=0.0)
    model.set_model_attn2_patch(patch)
    sample(conditioning(1), conditioning(2), length=4, steps=1, model=model)
    assert set(map(tuple, calls)) == {(0, 1, 2, 3), (4, 5, 6, 7)}
    calls.clear()
    model.model_options["transformer_options"]["ad_params"] = {"sub_idxs": list(range(16, 24)), "full_length": 24}
    sample(conditioning(1), conditioning(2), length=4, steps=1, model=model)
    assert set(map(tuple, calls)) == {(16, 17, 18, 19), (20, 21, 22, 23)}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, FRAMES])
def test_masks_and_texts_are_repeated_as_without_windows(comfy, sample, rows):
    """Also in windows of 3 frames, frame i has row i % rows."""
    mask = torch.rand(rows, 8, 8, generator=torch.Generator().manual_seed(1))
    positive = [*conditioning(1, mask=mask, mask_strength=1.0), *conditioning(3)]
    same(sample(positive, conditioning(2), length=3), sample(positive, conditioning(2)))
    texts = [[torch.randn(rows, 77, 32, generator=torch.Generator().manual_seed(4)), {}]]
    same(sample(texts, conditioning(2), length=3), sample(texts, conditioning(2)))


def test_windows_that_are_not_used_again_are_released(comfy):
    from stillmotion.model_patches.comfy_host.base.windows import WindowedControl

    control = WindowedControl(Seen().set_cond_hint(numbers()))
    first = control.of_window((0, 1), torch.tensor([3.0]))
    assert control.of_window((0, 1), torch.tensor([2.0])) is first
    control.of_window((2, 3), torch.tensor([1.0]))
    control.of_window((2, 3), torch.tensor([0.5]))
    assert set(control.parts) | set(control.earlier) == {(2, 3)}
    control.cleanup()
    assert not control.parts
