"""Long Video on a tiny U-Net: it makes the clips of ReuseSampler, and does not change the user's objects."""

import copy
from typing import Any

import pytest
import torch

from stillmotion.model_patches.vidrd.reuse import Config, History, next_noise

FRAMES, CONTEXT, SIZE = 4, 32, 32
CONFIG = Config(overlap=2, staged_guidance=0.6)


def conditioning(seed, rows=1):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(rows, 7, CONTEXT, generator=generator), {"pooled_output": None}]]


def mixing(model):
    """The frames of a call depend on each other, as with a motion model."""
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + args["denoised"].roll(1, 0) * 0.5)
    return model


@pytest.fixture
def long_video(tiny_sd, tiny_vae):
    from stillmotion.model_patches.comfy_host.video.long import LongVideo, make_guider

    def make(*, model=None, positive=None, negative=None, guider=None, **changes):
        guider = guider or make_guider(
            model or mixing(tiny_sd), positive or conditioning(1), negative or conditioning(2), 3.0
        )
        settings = {"sampler": "euler", "scheduler": "normal", "steps": 3, "seed": 5, "frames": FRAMES}
        return LongVideo(guider, tiny_vae, **{**settings, "size": (SIZE, SIZE), "config": CONFIG} | changes)

    return make


def clips_of(long, count, takes=()):
    clips, state = [], None
    for clip in range(count):
        latents, state = long.sample(clip, dict(takes).get(clip, 0), state, lambda share: None)
        clips.append(latents)
    return clips


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "heun", "dpmpp_2m_sde"])
def test_its_clips_are_those_of_reuse_sampler(comfy, tiny_sd, long_video, sampler):
    """Bit for bit equal to ReuseSampler with the same noise, although states are stored as tensors in between."""
    import comfy.sample
    import comfy.samplers

    from stillmotion.model_patches.comfy_host.video.long import make_guider
    from stillmotion.model_patches.comfy_host.video.shared import clip_seed
    from stillmotion.model_patches.comfy_host.vidrd.reuse import ReuseSampler

    long = long_video(sampler=sampler, step_noise=True)
    empty, noise = torch.zeros(FRAMES, 4, SIZE // 8, SIZE // 8), []
    for clip in range(3):
        fresh: Any = comfy.sample.prepare_noise(empty, clip_seed(5, clip))
        noise.append(fresh if not noise else next_noise(noise[-1][None], fresh[None], CONFIG)[0])
    reusing = ReuseSampler(comfy.samplers.sampler_object(sampler), FRAMES, CONFIG, step_noise=True)
    guider = make_guider(mixing(tiny_sd), conditioning(1), conditioning(2), 3.0)
    with torch.inference_mode():
        expected = guider.sample(
            torch.cat(noise), torch.zeros(3 * FRAMES, *empty.shape[1:]), reusing, long.sigmas, seed=5, disable_pbar=True
        )
    assert torch.equal(torch.cat(clips_of(long, 3)), expected)


def test_the_first_clip_equals_the_result_of_the_ksampler(tiny_sd, long_video, run_sampler):
    import comfy.sample

    latent = torch.zeros(FRAMES, 4, SIZE // 8, SIZE // 8)
    expected = comfy.sample.sample(
        mixing(tiny_sd), comfy.sample.prepare_noise(latent, 5), 3, 3.0, "euler", "normal", conditioning(1),
        conditioning(2), latent, seed=5, disable_pbar=True,
    )  # fmt: skip
    assert torch.equal(clips_of(long_video(), 1)[0], expected)


def test_another_take_changes_its_clip_alone(long_video):
    first, second = clips_of(long_video(), 2), clips_of(long_video(), 2, {1: 1})
    assert torch.equal(first[0], second[0])
    assert (first[1] - second[1]).abs().mean() > 1e-3


def test_a_history_survives_as_tensors():
    history = History((3.0, 1.5, 0.0), torch.randn(1, 4, 2), {0: torch.randn(1, 2, 2)}, (torch.randn(1, 4, 2),) * 2)
    copy_of_history = History.of(history.tensors())
    assert copy_of_history.sigmas == history.sigmas
    assert copy_of_history.states.keys() == history.states.keys()
    assert torch.equal(copy_of_history.states[0], history.states[0])
    assert len(copy_of_history.step_noise) == 2
    with pytest.raises(ValueError, match="sigmas is missing"):
        History.of({"noise": history.noise})


def test_rows_of_single_frames_go_to_their_clip(long_video):
    """Text with a row for every frame of the video: each clip uses only its own rows."""
    rows = conditioning(1, 2 * FRAMES)
    state = None
    for clip in range(2):
        rows_of_clip = [[rows[0][0][clip * FRAMES : (clip + 1) * FRAMES], {}]]
        expected = long_video(positive=rows_of_clip).sample(clip, 0, state, lambda share: None)[0]
        latents, state = long_video(positive=rows).sample(clip, 0, state, lambda share: None)
        assert torch.equal(latents, expected)
    long = long_video(positive=rows)
    long.check(2)
    with pytest.raises(ValueError, match="positive condition has 8 rows of cross_attn for a video of 12 frames; give"):
        long.check(3)


SEEN: list[torch.Tensor] = []


class Control:
    """Imported late, because ComfyUI's base class is not available earlier."""

    def __new__(cls, hint):
        from comfy.controlnet import ControlBase

        class Hinted(ControlBase):
            """Adds the mean of its hint to every frame, and records its hints."""

            def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
                hint: Any = self.cond_hint_original
                SEEN.append(hint[:, 0, 0, 0].clone())
                self.cond_hint = self.cond_hint_original
                return None

            def copy(self):
                control = type(self)()
                self.copy_to(control)
                return control

        return Hinted().set_cond_hint(hint)


def test_hints_are_cut_for_their_clip_and_the_users_objects_stay(tiny_sd, long_video):
    SEEN.clear()
    hint = torch.arange(2.0 * FRAMES + 1).view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE)
    inner, control = Control(torch.zeros(1, 3, SIZE, SIZE)), Control(hint)
    control.set_previous_controlnet(inner)
    positive = [[conditioning(1)[0][0], {"control": control, "control_apply_to_uncond": False}]]
    model = mixing(tiny_sd)
    before = (dict(vars(control)), copy.copy(positive[0][1]), copy.deepcopy(model.model_options["transformer_options"]))
    long = long_video(model=model, positive=positive)
    long.check(2)
    clips_of(long, 2)
    hints_by_call = [hints.tolist() for hints in SEEN]
    assert hints_by_call == [[0.0, 1.0, 2.0, 3.0]] * 3 + [[4.0, 5.0, 6.0, 7.0]] * 3
    assert vars(control) == before[0]
    assert positive[0][1] == before[1]
    assert model.model_options["transformer_options"] == before[2]
    assert control.cond_hint is None
    assert control.previous_controlnet is inner
    with pytest.raises(ValueError, match="has 9 rows of ControlNet images for a video of 12 frames"):
        long.check(3)


def test_our_own_limited_controlnets_are_cut_too(comfy):
    from stillmotion.model_patches.comfy_host.conditions.control import FrameControl
    from stillmotion.model_patches.comfy_host.conditions.frames import Part

    hint = torch.arange(8.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    control = FrameControl.around(Control(hint), {0: 1.0, 5: 0.5}, 8)
    part = Part(4, 8).conditions({"positive": [{"control": control}]})["positive"][0]["control"]
    assert part.weights.tolist() == [0.0, 0.5, 0.0, 0.0]
    assert part.inner.cond_hint_original[:, 0, 0, 0].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert len(control.weights) == len(control.inner.cond_hint_original) == 8


def test_ip_adapters_learn_which_frames_they_see(tiny_sd, long_video):
    """They read ad_params in the options of their patch."""
    calls = []

    def patch(n, context, value, options):
        calls.append(options["ad_params"])
        return n, context, value

    model = mixing(tiny_sd)
    model.set_model_attn2_patch(patch)
    clips_of(long_video(model=model), 2)
    assert calls[0] == {"sub_idxs": [0, 1, 2, 3], "full_length": 4}
    assert calls[-1] == {"sub_idxs": [4, 5, 6, 7], "full_length": 8}
    assert "ad_params" not in model.model_options["transformer_options"]


class Words:
    """A CLIP that counts what it encodes."""

    def __init__(self, patcher):
        self.patcher, self.encoded = patcher, []

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        self.encoded.append(text)
        return conditioning(len(text))


def test_prompts_are_encoded_when_their_clip_comes(tiny_sd, long_video):
    from stillmotion.model_patches.comfy_host.conditions.prompts import PromptSchedule, parse_prompts

    clip = Words(tiny_sd)
    long = long_video(prompts=PromptSchedule(clip, parse_prompts("a\nbb\n4: cccc")))
    assert clip.encoded == []
    clips = clips_of(long, 4)
    assert clip.encoded == ["a", "bb", "cccc"]
    assert torch.equal(clips[0], clips_of(long_video(positive=conditioning(1)), 1)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no prompt"),
        ("3: a", "the first prompt is for clip 3; add one for clip 1"),
        ("a\n2: b\n2: c", "the line before it is for clip 2; use increasing numbers"),
        ("a\n0: b", "is for clip 0, but the line before it is for clip 1"),
        ("a\n2:", "the line '2:' has no text"),
        ("a\n" + "9" * 5000 + ": b", "is for a clip beyond every video"),
        ('"0": "a fox",\n"40": "an owl"', "are clips, counted from 1, .*16 frames write\n1: a fox\n3: an owl"),
        ("0: a fox\n4: an owl", "whose numbers are frames, counted from 0.*\n1: a fox\n2: an owl"),
    ],
)
def test_schedules_that_say_nothing_are_refused(comfy, text, message):
    from stillmotion.model_patches.comfy_host.conditions.prompts import parse_prompts

    with pytest.raises(ValueError, match=f"(?s){message}"):
        parse_prompts(text)


def test_a_number_of_a_clip_needs_no_space(comfy):
    from stillmotion.model_patches.comfy_host.conditions.prompts import parse_prompts

    assert parse_prompts("1:a garden\n5:a bird") == ((0, "a garden"), (4, "a bird"))


def test_a_ratio_in_a_prompt_is_not_a_clip_number(comfy):
    from stillmotion.model_patches.comfy_host.conditions.prompts import parse_prompts

    assert parse_prompts("16:9 picture of a cat") == ((0, "16:9 picture of a cat"),)


def test_fingerprints_tell_files_and_patches_apart_and_nothing_else(comfy, tiny_sd, long_video):
    from stillmotion.model_patches.comfy_host.base.betas import apply_betas
    from stillmotion.model_patches.comfy_host.base.fingerprint import of_model, of_values

    before = of_model(tiny_sd)
    clips_of(long_video(model=tiny_sd), 1)  # loaded now
    assert of_model(tiny_sd) == of_model(tiny_sd.clone()) == before
    name = next(n for n, w in tiny_sd.model.state_dict().items() if w.ndim == 1)
    changed = tiny_sd.clone()
    changed.add_patches({name: ("diff", (torch.ones_like(tiny_sd.model.state_dict()[name]),))}, 1.0)
    patched = of_model(changed)
    assert patched != before
    clips_of(long_video(model=changed), 1)  # the patch is part of the weights now
    assert of_model(changed) == patched
    assert of_model(tiny_sd) == before
    clips_of(long_video(model=apply_betas(tiny_sd)), 1)  # it contains other noise levels now
    assert of_model(tiny_sd) == before
    assert of_values(conditioning(1)) == of_values(conditioning(1)) != of_values(conditioning(2))
    hint = torch.zeros(8, 3, 4, 4)
    one, other = Control(hint), Control(hint + (torch.arange(8).view(-1, 1, 1, 1) == 7))
    assert of_values([one]) == of_values([Control(hint)]) != of_values([other])


def test_invalid_inputs_are_refused_before_sampling(tiny_sd, long_video):
    from stillmotion.model_patches.comfy_host.video.long import make_guider

    with pytest.raises(ValueError, match="overlap is 9, but a clip has only 4 frames"):
        long_video(config=Config(overlap=9))
    with pytest.raises(ValueError, match=r"36 x 32 pixels, but the VAE needs multiples of 8; use 32 x 32"):
        long_video(size=(32, 36))
    with pytest.raises(ValueError, match=r"dpm_adaptive.* chooses its own steps"):
        long_video(sampler="dpm_adaptive")
    with pytest.raises(ValueError, match="adds new noise at every step"):
        long_video(sampler="euler_ancestral")
    with pytest.raises(ValueError, match="connect it, or set cfg to 1"):
        make_guider(tiny_sd, conditioning(1), None, 3.0)


def test_models_that_make_videos_themselves_are_refused(tiny_wan, long_video):
    with pytest.raises(ValueError, match="this MODEL is a video model"):
        long_video(model=tiny_wan)


def test_frames_are_decoded_alike_however_many_there_are(long_video):
    long = long_video()
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    together = torch.cat(list(long.decode(latents)))
    assert together.shape == (3, SIZE, SIZE, 3)
    assert torch.equal(torch.cat(list(long.decode(latents[2:]))), together[2:])
    assert together.dtype == torch.uint8


def test_broken_latents_stop_the_render_and_name_the_clip(long_video, tiny_sd):
    calls = []

    def broken(args):
        calls.append(None)
        return args["denoised"] * (float("nan") if len(calls) > 3 else 1.0)

    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(broken)
    with pytest.raises(ValueError, match="long video: clip 2 contains NaN"):
        clips_of(long_video(model=model), 3)


def test_broken_pictures_are_never_written(long_video):
    long = long_video()
    with pytest.raises(ValueError, match=r"NaN or infinite values after the VAE"):
        list(long.decode(torch.full((1, 4, SIZE // 8, SIZE // 8), float("nan"))))


def test_the_largest_seed_works_with_samplers_that_add_to_it(long_video):
    """Clip 0 is sampled with the seed itself, and ddim and the ancestral samplers add 1 to it."""
    for sampler in ("ddim", "euler_ancestral"):
        assert clips_of(long_video(sampler=sampler, seed=2**64 - 1, step_noise=True), 1)[0].isfinite().all()
