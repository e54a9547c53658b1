"""ART-V's guider and rollout on a tiny U-Net: the branches of Eq. 8; frames depend only on earlier frames."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stillmotion.model_patches.artv.config import ArtvConfig
from stillmotion.model_patches.artv.guidance import CONDITIONS, Weights, guided
from stillmotion.model_patches.artv.model import ArtvModel
from stillmotion.model_patches.systems import ARTV

from ..conftest import CONTEXT, randomise

SIZE = 32
CONFIG = ArtvConfig(
    block_channels=(32, 64),
    attention=(False, True),
    heads=(2, 2),
    mask_channels=(16, 32),
    mask_heads=(2, 2),
    layers_per_block=1,
    context_dim=CONTEXT,
    adapter_blocks=1,
    anchor_patch=2,
    anchor_ff=1,
)


def conditioning(seed, rows=1):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(rows, 7, CONTEXT, generator=generator), {"pooled_output": None}]]


@pytest.fixture
def artv(comfy, weight_file):
    """An ART-V model with random weights, so that every part has an effect."""
    from stillmotion.model_patches.comfy_host.artv.files import load_artv

    model = ArtvModel(CONFIG)
    randomise(model, seed=4)
    return load_artv(weight_file(ARTV, model))


@pytest.fixture
def roll(tiny_sd, tiny_vae, artv):
    """roll(...) -> a Rollout with two steps of Euler and these arguments."""
    from stillmotion.model_patches.comfy_host.video.autoregressive import Rollout

    settings = {
        "positive": conditioning(1),
        "negative": conditioning(2),
        "sampler": "euler",
        "scheduler": "normal",
        "steps": 2,
    }
    settings |= {"seed": 5, "size": (SIZE, SIZE), "weights": Weights(0.5, 0.25, 2.0), "level": 200}

    def make(*, model=None, **changes):
        return Rollout(model or tiny_sd, artv, tiny_vae, **settings | changes)

    return make


def rolled(roll, frames, *, before=None, first=0):
    """Latents of the frames, and the state after each frame."""
    latents_of_frames, states = [], []
    for frame in range(first, frames):
        latents, before = roll.sample(frame, 0, before, lambda share: None)
        latents_of_frames.append(latents)
        states.append(before)
    return latents_of_frames, states


def picture(seed=3, size=(SIZE, SIZE)):
    return torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(seed))


def start_of(vae, **inputs):
    from stillmotion.model_patches.comfy_host.video.autoregressive import encode_start

    return encode_start(vae, (SIZE, SIZE), "crop", **inputs)[0]


def given_frame(seed=6, **changes):
    from stillmotion.model_patches.comfy_host.artv.checks import FrameInputs

    draw = torch.Generator().manual_seed(seed)
    shape = (4, SIZE // 8, SIZE // 8)
    values: dict[str, Any] = {"references": torch.randn(2, *shape, generator=draw), "level": 200}
    values |= {"anchor": torch.randn(*shape, generator=draw), "noise": torch.randn(3, *shape, generator=draw)}
    return FrameInputs(**values | changes)


@pytest.fixture
def predicted(tiny_sd, artv):
    """predicted(weights, inputs, **of apply_artv) -> (the guider's prediction, the number of rows in each call of the
    MODEL)."""
    import comfy.samplers

    from stillmotion.model_patches.artv.guidance import needed
    from stillmotion.model_patches.comfy_host.artv.apply import apply_artv
    from stillmotion.model_patches.comfy_host.video.autoregressive import ArtvGuider, left_out

    def predict(weights, inputs, *, model=None, conditions=CONDITIONS, negative=2, **options):
        rows, x_0 = [], []

        def listen(executor, x, *args, **options):
            rows.append(len(x))
            return executor(x, *args, **options)

        def once(model, x, sigmas, extra_args, callback, disable):
            x_0.append(model(x, sigmas[:1], **extra_args))
            return x_0[0]

        patched = apply_artv(model or tiny_sd, artv, inputs, left_out=left_out(needed(weights, conditions)), **options)
        patched.add_wrapper_with_key("apply_model", "test", listen)
        guider = ArtvGuider(patched, weights, conditions)
        guider.set_conds(conditioning(1), conditioning(negative))
        noise = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(8))
        with torch.inference_mode():
            guider.sample(
                noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(once), torch.tensor([3.0, 0.0]), seed=1,
                disable_pbar=True,
            )  # fmt: skip
        return x_0[0], rows

    return predict


def alone(name):
    """Weights with which Eq. 8 is P + (P - P_k) for this condition k only."""
    return Weights(**{k: float(k == name) for k in CONDITIONS})


def test_with_one_mask_for_all_what_moves_is_guided_and_then_blended(predicted, tiny_sd, monkeypatch):
    weights, inputs, trace_calls = Weights(0.5, 0.25, 2.0), given_frame(), []
    result, rows = predicted(weights, inputs, each=False, trace=lambda *result: trace_calls.append(result))
    assert rows == [4]
    ((_, condition, m),) = trace_calls  # only the branch with all conditions passes through the mask network
    assert condition == 0
    assert m.std() > 1e-3
    assert inputs.references is not None
    moving = predicted(weights, inputs, mask=False)[0]
    torch.testing.assert_close(result, m * inputs.references[:1] + (1 - m) * moving, rtol=0, atol=1e-5)
    assert (
        result - predicted(weights, inputs)[0]
    ).abs().max() > 1e-2  # with one mask for each branch the result differs
    torch.testing.assert_close(predicted(weights, inputs, each=False, mask=False)[0], moving, rtol=0, atol=1e-6)
    monkeypatch.setattr(type(tiny_sd), "get_free_memory", lambda *_: 0)
    separate, rows = predicted(weights, inputs, each=False)
    assert rows == [1] * 4
    torch.testing.assert_close(separate, result, rtol=0, atol=1e-5)


def test_a_guider_that_does_not_blend_is_refused(tiny_sd, artv):
    import comfy.samplers

    from stillmotion.model_patches.comfy_host.artv.apply import apply_artv

    guider = comfy.samplers.CFGGuider(apply_artv(tiny_sd, artv, given_frame(), each=False))
    guider.set_conds(conditioning(1), conditioning(2))
    empty = torch.zeros(1, 4, SIZE // 8, SIZE // 8)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="CFGGuider does not blend the previous frame"):
        guider.sample(empty, empty, comfy.samplers.sampler_object("euler"), torch.tensor([3.0, 0.0]), disable_pbar=True)


def test_one_batch_of_four_is_four_calls(predicted, tiny_sd, monkeypatch):
    weights, inputs = Weights(0.5, 0.25, 2.0), given_frame()
    together, rows = predicted(weights, inputs)
    assert rows == [4]
    full, rows = predicted(Weights(0, 0, 0), inputs)
    assert rows == [1]
    without = {name: 2 * full - predicted(alone(name), inputs)[0] for name in CONDITIONS}  # P + (P - P_k)
    # P_k is computed from P + (P - P_k), which doubles the rounding error
    torch.testing.assert_close(together, guided(full, without, weights), rtol=0, atol=5e-5)
    for name in CONDITIONS:  # each of them has an effect
        assert (without[name] - full).abs().max() > 1e-3
    monkeypatch.setattr(type(tiny_sd), "get_free_memory", lambda *_: 0)
    separate, rows = predicted(weights, inputs)
    assert rows == [1] * 4
    torch.testing.assert_close(separate, together, rtol=0, atol=1e-5)


def test_leaving_out_is_as_if_it_were_not_there(predicted):
    inputs = given_frame()
    full = predicted(Weights(0, 0, 0), inputs)[0]
    for name, absent in (("reference", {"references": None}), ("anchor", {"anchor": None})):
        without = 2 * full - predicted(alone(name), inputs)[0]
        expected = predicted(Weights(0, 0, 0), replace(inputs, **absent))[0]
        torch.testing.assert_close(without, expected, rtol=0, atol=1e-5)


def test_a_weight_of_zero_costs_no_call(predicted):
    assert predicted(Weights(0, 0.25, 6.5), given_frame())[1] == [3]
    assert predicted(Weights(0.25, 0, 0), given_frame())[1] == [2]


def test_a_text_that_equals_the_null_text_costs_no_call(predicted):
    """P_txt is P then: the result is that without a weight for the text."""
    with_weight, rows = predicted(Weights(0.25, 0.25, 6.5), given_frame(), negative=1)
    assert rows == [3]
    assert torch.equal(with_weight, predicted(Weights(0.25, 0.25, 0), given_frame(), negative=1)[0])


def test_post_cfg_functions_get_the_guided_prediction(predicted, tiny_sd):
    calls = []
    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(lambda args: calls.append(args) or args["denoised"] + 1)
    weights = Weights(0.5, 0.25, 2.0)
    plain, changed = predicted(weights, given_frame())[0], predicted(weights, given_frame(), model=model)[0]
    torch.testing.assert_close(changed, plain + 1, rtol=0, atol=1e-6)
    assert calls[0]["cond_scale"] == 3.0
    assert calls[0]["uncond_denoised"].shape == calls[0]["cond_denoised"].shape


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Should have t")  # torchsde rounds the ends of its interval
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "uni_pc"])
def test_a_rollout_resumes_from_every_frame_with_the_same_frames(roll, tiny_vae, sampler):
    """Also for samplers that draw noise in their steps; random numbers drawn before do not matter."""
    start = start_of(tiny_vae, image=picture())
    whole, states = rolled(roll(sampler=sampler, start=start), 4)
    for frame in range(1, 4):
        torch.rand(frame)
        (latent, *_), _ = rolled(roll(sampler=sampler, start=start), frame + 1, before=states[frame - 1], first=frame)
        assert torch.equal(latent, whole[frame])
    assert (whole[1] - whole[2]).abs().mean() > 1e-3


@pytest.mark.slow
def test_the_first_frame_is_the_picture_and_then_both_references(roll, tiny_vae):
    image = picture()
    (first, _), (state, after) = rolled(roll(start=start_of(tiny_vae, image=image)), 2)
    assert torch.equal(first, tiny_vae.encode(image))
    assert torch.equal(state["references"], torch.cat([first, first]))
    assert torch.equal(state["anchor"], first[0])
    assert torch.equal(after["references"][1], first[0])
    assert torch.equal(after["anchor"], first[0])


def test_without_a_picture_the_model_draws_the_first_frame(roll, tiny_sd, artv):
    """With the text alone, like a CFGGuider with blank references."""
    import comfy.sample
    import comfy.samplers

    from stillmotion.model_patches.comfy_host.artv.apply import apply_artv

    rollout = roll()
    blank = given_frame(references=None, anchor=None)
    guider = comfy.samplers.CFGGuider(apply_artv(tiny_sd, artv, blank))
    guider.set_conds(conditioning(1), conditioning(2))
    guider.set_cfg(3.0)
    empty = torch.zeros(1, 4, SIZE // 8, SIZE // 8)
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(empty, 5)
        expected = guider.sample(noise, empty, rollout.sampler, rollout.sigmas, seed=5, disable_pbar=True)
    torch.testing.assert_close(rolled(rollout, 1)[0][0], expected, rtol=1e-5, atol=1e-5)


def test_a_video_is_continued_from_its_last_two_frames(roll, tiny_vae):
    frames = [picture(seed)[0].movedim(-1, 0) for seed in range(4)]
    start = start_of(tiny_vae, video=iter(frames))
    newer, older = (tiny_vae.encode(picture(seed)) for seed in (3, 2))
    assert start.references is not None
    assert start.anchor is not None
    torch.testing.assert_close(start.references, torch.cat([newer, older]))
    torch.testing.assert_close(start.anchor, newer[0])
    (first,), (state,) = rolled(roll(start=start), 1)
    assert torch.equal(state["references"], torch.cat([first, start.references[:1]]))
    assert torch.equal(state["anchor"], start.anchor)
    anchored = start_of(tiny_vae, video=iter(frames), anchor=picture(0))
    assert (rolled(roll(start=anchored), 1)[0][0] - first).abs().max() > 1e-4
    single = start_of(tiny_vae, video=iter(frames[:1]))
    assert single.references is not None
    assert torch.equal(single.references[0], single.references[1])


class Words:
    """A CLIP that counts what it encodes."""

    def __init__(self, patcher):
        self.patcher, self.encoded = patcher, []

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        self.encoded.append(text)
        return conditioning(100 + len(text))


@pytest.fixture
def story_prompts(tiny_sd):
    from stillmotion.model_patches.artv.story import parse_story
    from stillmotion.model_patches.comfy_host.conditions.prompts import StoryPrompts

    return lambda text: StoryPrompts.of(Words(tiny_sd), parse_story(text))


def test_a_story_changes_text_and_anchor_at_its_borders(roll, story_prompts):
    story = story_prompts("2: a\n2: bb")
    latents, states = rolled(roll(positive=None, negative=None, story=story), 5)
    assert story.clip.encoded == ["", "a", "bb"]
    anchors = [state["anchor"] for state in states]
    for frame, anchor in enumerate((0, 0, 1, 1, 1)):
        assert torch.equal(anchors[frame], latents[anchor][0])
    plain, _ = rolled(roll(positive=conditioning(101), negative=conditioning(100)), 3)
    assert torch.equal(plain[1], latents[1])
    assert not torch.equal(plain[2], latents[2])


def test_a_longer_story_does_not_change_earlier_frames(roll, story_prompts):
    short = roll(positive=None, negative=None, story=story_prompts("2: a"))
    long = roll(positive=None, negative=None, story=story_prompts("2: a\n2: bb"))
    assert short.identity() == long.identity()
    assert [short.inputs(i) for i in range(2)] == [long.inputs(i) for i in range(2)]
    assert short.inputs(2) != long.inputs(2)
    _, states = rolled(short, 2)
    assert torch.equal(rolled(long, 3, before=states[-1], first=2)[0][0], rolled(long, 3)[0][2])


@pytest.mark.slow
def test_rows_of_single_frames_go_to_their_frame(roll):
    rows = conditioning(1, 2)
    long = roll(positive=rows)
    long.check(2)
    first, second = rolled(long, 2)[0]
    assert torch.equal(rolled(roll(positive=[[rows[0][0][:1], {}]]), 1)[0][0], first)
    with pytest.raises(ValueError, match="positive condition has 2 rows of cross_attn for a video of 3 frames"):
        long.check(3)
    assert not torch.equal(first, second)


def test_broken_latents_stop_the_roll_and_name_the_frame(roll, tiny_sd):
    calls = []

    def broken(args):
        calls.append(None)
        return args["denoised"] * (float("nan") if len(calls) > 2 else 1.0)

    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(broken)
    with pytest.raises(ValueError, match="frame 2 contains NaN or infinite values"):
        rolled(roll(model=model), 3)


def test_pictures_of_other_sizes_are_fitted_by_the_named_rule(comfy):
    from stillmotion.model_patches.comfy_host.video.autoregressive import fit_image

    image = torch.zeros(1, 32, 96, 3)
    image[:, :, 32:64] = 1  # the part that remains when both sides are cropped
    cut, remark = fit_image(image, (64, 64), "crop")
    assert remark == "the image of 96 x 32 pixels was scaled and cropped at its centre to 64 x 64"
    assert cut.shape == (1, 64, 64, 3)
    assert cut.mean() == pytest.approx(1, abs=1e-2)
    pulled, remark = fit_image(image, (64, 64), "stretch")
    assert remark.endswith("was stretched to 64 x 64")
    assert pulled.mean() == pytest.approx(1 / 3, abs=1e-2)
    same, remark = fit_image(image, (32, 96), "crop")
    assert (remark, torch.equal(same, image)) == ("", True)


def test_invalid_inputs_are_refused_before_sampling(roll, tiny_vae):
    with pytest.raises(ValueError, match="there is no prompt; connect positive or a story"):
        roll(positive=None)
    with pytest.raises(ValueError, match="text_weight is 2, but negative is not connected"):
        roll(negative=None)
    roll(negative=None, weights=Weights(text=0))
    with pytest.raises(ValueError, match=r"36 x 32 pixels, but the VAE needs multiples of 8; use 32 x 32"):
        roll(size=(32, 36))
    with pytest.raises(ValueError, match="augmentation level is 1000; it must be a time step from 0 to 999"):
        roll(level=1000)
    with pytest.raises(ValueError, match="image and video are both connected"):
        start_of(tiny_vae, image=picture(), video=iter([picture()[0]]))
    with pytest.raises(ValueError, match="anchor is connected without a video"):
        start_of(tiny_vae, anchor=picture())
