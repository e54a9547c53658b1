"""Double-condition guidance in real ComfyUI runs: Eq. 5 computed in three independent ways, and its conditions."""

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig

FRAMES = 4
BRANCH = RetentionConfig(
    block_channels=(32, 64),
    attention=(False, True),
    heads=(2, 2),
    layers_per_block=1,
    context_dim=32,  # of conftest's tiny_sd
    linear_projection=False,
    hint_channels=(16, 32, 32),
    temporal="none",
)


def conditioning(seed):
    return [[torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(seed)), {}]]


def picture(seed=0):
    return torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["skips"])
def branch(request, comfy, tmp_path):
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import load_branch

    config = DreamVideoConfig(branch=RetentionConfig(**BRANCH.to_dict() | {"inject": request.param}))
    torch.manual_seed(1)
    model = dreamvideo_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path / "d.safetensors"
    checkpoint.save(path, system="dreamvideo", config=config.to_dict(), weights=model.state_dict())
    return load_branch(path)


@pytest.fixture
def conditions(branch):
    """conditions(image) -> (text, null text), both with this image (None: white)."""
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import apply_retention

    return lambda image: apply_retention((conditioning(1), conditioning(2)), branch, image)


@pytest.fixture
def guide(conditions):
    """guide(model, text, image, order) -> our guider."""
    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider
    from stillmotion.model_patches.dreamvideo.guidance import TEXT_FIRST

    def make(model, text=7.5, image=2.0, order=TEXT_FIRST, image_input=None):
        positive, negative = conditions(picture() if image_input is None else image_input)
        return double_condition_guider(model, positive, negative, text=text, image=image, order=order)

    return make


@pytest.fixture
def run(comfy):
    from comfy import samplers

    def sample(guider, steps=3, sampler="euler"):
        sigmas = samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
        noise = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            ksampler = samplers.sampler_object(sampler)
            return guider.sample(noise, torch.zeros_like(noise), ksampler, sigmas, disable_pbar=True, seed=3).clone()

    return sample


@pytest.fixture
def alone(comfy, run):
    """alone(model, condition) -> the x_0 of one model call with only this condition."""
    from comfy import samplers

    def predict(model, condition):
        guider = samplers.CFGGuider(model)
        guider.set_conds(condition, condition)
        guider.set_cfg(1.0)
        return run(guider, steps=1)

    return predict


@pytest.fixture
def listening(comfy):
    """listening(model) -> a clone, and the list of the chunks of each of its U-Net calls."""
    from comfy.patcher_extension import WrappersMP

    def make(model):
        calls = []

        def listen(executor, x, *args, **kwargs):
            calls.append(len(x) // FRAMES)
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", listen)
        return model, calls

    return make


def close(a, b, share=1e-5):
    return bool((a - b).abs().max() <= share * b.abs().max())


@pytest.mark.parametrize("branch", ["skips", "up_blocks"], indirect=True)
@pytest.mark.parametrize("order", ["text first", "image first"])
@pytest.mark.parametrize(("text", "image"), [(7.5, 2.0), (3.0, 3.0), (0.0, 4.0)])
def test_it_is_the_sum_of_separate_calls(tiny_sd, guide, conditions, alone, run, order, text, image):
    from stillmotion.model_patches.comfy_host.motion.apply import with_handlers

    model = with_handlers(tiny_sd)
    with_image, with_white = conditions(picture()), conditions(None)
    both, one_image = (alone(model, condition) for condition in with_image)
    one_text, none = (alone(model, condition) for condition in with_white)
    first, second = (text, image) if order == "text first" else (image, text)
    middle = one_text if order == "text first" else one_image
    expected = none + first * (middle - none) + second * (both - middle)
    assert close(run(guide(tiny_sd, text, image, order), steps=1), expected)
    assert not close(expected, both, 0.01)


@pytest.mark.parametrize(("text", "image"), [(7.5, 2.0), (1.0, 4.0), (1.0, 1.0)])
def test_it_is_comfyuis_dual_cfg_guider(tiny_sd, guide, conditions, run, text, image):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    both, _ = conditions(picture())
    middle, none = conditions(None)
    dual_guider = Guider_DualCFG(tiny_sd)
    dual_guider.set_conds(both, middle, none)
    dual_guider.set_cfg(image, text, nested=False)
    assert close(run(guide(tiny_sd, text, image)), run(dual_guider))


def test_three_conditions_are_one_batch_when_memory_allows(tiny_sd, guide, run, listening, monkeypatch):
    model, calls = listening(tiny_sd)
    together = run(guide(model))
    assert calls == [3, 3, 3]
    calls.clear()
    monkeypatch.setattr(model.model, "memory_required", lambda *_args, **_options: 1e30)
    apart = run(guide(model))
    assert calls == [1] * 9
    assert close(apart, together)


@pytest.mark.parametrize(
    ("text", "image", "order", "chunks"),
    [
        (1.0, 1.0, "text first", 1),
        (7.5, 0.0, "text first", 2),
        (1.0, 4.0, "text first", 2),
        (7.5, 7.5, "text first", 2),
        (7.5, 1.0, "image first", 2),
        (0.0, 0.0, "image first", 1),
    ],
)
def test_predictions_without_weight_are_not_run(tiny_sd, guide, run, listening, text, image, order, chunks):
    model, calls = listening(tiny_sd)
    run(guide(model, text, image, order), steps=1)
    assert calls == [chunks]


def test_scales_of_one_are_text_and_image_and_nothing_else(tiny_sd, guide, conditions, alone, run):
    assert torch.equal(run(guide(tiny_sd, 1.0, 1.0), steps=1), alone(tiny_sd, conditions(picture())[0]))


def test_post_cfg_functions_see_the_final_prediction(tiny_sd, guide, run):
    calls = []
    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(lambda args: calls.append(args) or args["denoised"] * 0.5)
    plain, halved = run(guide(tiny_sd), steps=1), run(guide(model), steps=1)
    (args,) = calls
    assert close(model.model.process_latent_out(args["denoised"]), plain, 1e-4)
    assert close(halved, plain * 0.5, 1e-4)
    assert not torch.equal(args["cond_denoised"], args["uncond_denoised"])
    assert args["cond_scale"] == 7.5


def test_the_mitigating_gradient_works_behind_it(tiny_sd, guide, run):
    from stillmotion.model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient
    from stillmotion.model_patches.harivo.mitigating import Config

    model, readout = apply_mitigating_gradient(tiny_sd, Config(alpha=40.0), frames=FRAMES)
    assert not torch.equal(run(guide(model)), run(guide(tiny_sd)))
    assert len(readout.records[-1].calls) == 3


def test_samplers_that_need_the_null_prediction_get_it(tiny_sd, guide, run, listening):
    model, calls = listening(tiny_sd)
    assert torch.isfinite(run(guide(model, 1.0, 1.0), steps=2, sampler="euler_cfg_pp")).all()
    assert calls == [3, 3]


def test_a_negative_without_the_image_gets_the_branch(tiny_sd, conditions, run, guide):
    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider

    positive, _ = conditions(picture())
    result = run(double_condition_guider(tiny_sd, positive, conditioning(2), text=7.5, image=2.0))
    assert close(result, run(guide(tiny_sd)))


def test_invalid_guidance_is_reported_before_anything_runs(tiny_sd, conditions, guide):
    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider
    from stillmotion.model_patches.comfy_host.guidance.stepped import apply_stepped_cfg
    from stillmotion.model_patches.harivo.stepped import SteppedScale

    with pytest.raises(ValueError, match="positive has no image; connect it through Apply Image Retention"):
        double_condition_guider(tiny_sd, conditioning(1), conditioning(2), text=7.5, image=1.0)
    with pytest.raises(ValueError, match="another node has set a guidance function on this MODEL"):
        guide(apply_stepped_cfg(tiny_sd, SteppedScale()))
    with pytest.raises(ValueError, match="order is 'x'; choose one of"):
        guide(tiny_sd, order="x")


def test_it_works_in_context_windows(tiny_sd, guide, run, windowed, alone, conditions):
    """Without temporal layers, a frame does not depend on its context window."""
    assert close(run(guide(windowed(tiny_sd, 2))), run(guide(tiny_sd)), 1e-4)


def test_it_guides_behind_controlnet_frames(tiny_sd, conditions, run, guide):
    from stillmotion.model_patches.comfy_host.conditions.control import limit_to_frames
    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider

    pair = limit_to_frames(conditions(picture()), {0: 1.0, 1: 1.0}, FRAMES)
    result, whole = run(double_condition_guider(tiny_sd, *pair, text=7.5, image=2.0)), run(guide(tiny_sd))
    assert close(result[:2], whole[:2], 1e-4)
    assert not close(result[2:], whole[2:], 0.01)


@pytest.fixture
def long_video(tiny_vae):
    """long_video(guider, **options) -> a LongVideo of clips of 4 frames."""
    from stillmotion.model_patches.comfy_host.video.long import LongVideo
    from stillmotion.model_patches.vidrd.reuse import Config as ReuseConfig

    def make(guider, **options):
        settings = {"sampler": "euler", "scheduler": "normal", "steps": 2, "seed": 0, "frames": FRAMES}
        return LongVideo(guider, tiny_vae, **settings, size=(64, 64), config=ReuseConfig(overlap=2), **options)

    return make


def test_a_prompt_schedule_speaks_in_every_prediction_that_has_a_text(tiny_sd, branch, guide, long_video):
    from stillmotion.model_patches.comfy_host.conditions.prompts import PromptSchedule
    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import apply_retention

    schedule = PromptSchedule(None, ((0, "another"),), last=("another", conditioning(7)))
    spoken, _ = long_video(guide(tiny_sd), prompts=schedule).sample(0, 0, None, lambda _share: None)
    pair = apply_retention((conditioning(7), conditioning(2)), branch, picture())
    whole, _ = long_video(double_condition_guider(tiny_sd, *pair, text=7.5, image=2.0)).sample(
        0, 0, None, lambda _share: None
    )
    assert torch.equal(spoken, whole)


def test_a_long_video_knows_when_the_guidance_is_another(tiny_sd, branch, guide, long_video):
    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import apply_retention

    padded = apply_retention((conditioning(1), conditioning(2)), branch, picture(), rule="pad")
    ways = [
        guide(tiny_sd),
        guide(tiny_sd, image=3.0),
        guide(tiny_sd, order="image first"),
        guide(tiny_sd, image_input=picture(3)),
        double_condition_guider(tiny_sd, *padded, text=7.5, image=2.0),
    ]
    known = [long_video(way).identity() for way in ways]
    assert long_video(guide(tiny_sd)).identity() == known[0]
    assert all(a != b for i, a in enumerate(known) for b in known[:i])


@pytest.mark.parametrize(("order", "calls_of_unequal"), [("text first", 3), ("image first", 3)])
def test_equal_conditions_are_computed_once(branch, tiny_sd, listening, run, order, calls_of_unequal):
    """Without a prompt the text is the null text: two predictions instead of three, and the same result."""
    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import apply_retention

    def sampled(seed):
        model, calls = listening(tiny_sd)
        positive, negative = apply_retention((conditioning(2), conditioning(seed)), branch, picture())
        guider = double_condition_guider(model, positive, negative, text=7.5, image=2.0, order=order)
        return run(guider, steps=1), sum(calls)

    equal, calls = sampled(2)
    assert calls == 2
    almost = [[conditioning(2)[0][0] * (1 + 1e-6), {}]]
    assert sampled(1)[1] == calls_of_unequal
    model, calls = listening(tiny_sd)
    positive, negative = apply_retention((conditioning(2), almost), branch, picture())
    three = run(double_condition_guider(model, positive, negative, text=7.5, image=2.0, order=order), steps=1)
    assert sum(calls) == 3
    assert close(equal, three, 1e-3)


def test_conditions_are_equal_by_their_content_and_not_by_their_ids(comfy):
    from comfy.conds import CONDCrossAttn, CONDRegular

    from stillmotion.model_patches.comfy_host.base.equality import first_equal

    def condition(value=1.0, kind=CONDRegular, **more):
        return [{"model_conds": {"c": kind(torch.full((1, 3), value))}, "uuid": object(), "strength": 1.0, **more}]

    control = object()
    conditions = [
        condition(), condition(), condition(2.0), condition(kind=CONDCrossAttn), condition(control=control),
        condition(control=control), condition(control=object()), condition(mask=torch.ones(1)), None, None,
    ]  # fmt: skip
    assert first_equal(conditions) == [0, 0, 2, 3, 4, 4, 6, 7, 8, 8]
