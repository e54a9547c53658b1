"""Reuse of the previous clip with ComfyUI's own samplers: equal to Algorithm 1, for every supported sampler."""

import pytest
import torch

from stillmotion.model_patches.vidrd.reuse import Config, guided_frames, next_noise

FRAMES, CLIPS, CONTEXT = 4, 3, 32
CONFIG = Config(overlap=2, staged_guidance=0.6)
WHOLE = {"euler", "ddim", "dpmpp_2m", "uni_pc", "uni_pc_bh2", "res_multistep", "heun", "dpm_2", "heunpp2"}
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # DEIS in ComfyUI, on new NumPy
HISTORY_OF_EPS = {"lms", "ipndm", "ipndm_v", "deis", "gradient_estimation"}  # their update is not just a ratio of x
STOCHASTIC = {"euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm"}


def conditioning(seed):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 7, CONTEXT, generator=generator), {}]]


@pytest.fixture
def ran(comfy, tiny_sd):
    """ran(SAMPLER, noise, ...) -> latents, through ComfyUI's guider on a tiny U-Net with random weights."""
    import comfy.samplers

    def run(sampler, noise, *, sigmas, model=None, positive=None, **options):
        guider = comfy.samplers.CFGGuider(model or tiny_sd)
        guider.set_conds(positive or conditioning(1), conditioning(2))
        guider.set_cfg(3.0)
        empty = torch.zeros_like(noise)
        with torch.inference_mode():
            return guider.sample(noise, empty, sampler, sigmas, seed=5, disable_pbar=True, **options)

    return run


def ksampler(name, **options):
    import comfy.samplers

    if options:
        return comfy.samplers.ksampler(name, options)
    return comfy.samplers.sampler_object(name)


def reusing(name, config=CONFIG, *, frames=FRAMES, **options):
    from stillmotion.model_patches.comfy_host.vidrd.reuse import ReuseSampler

    return ReuseSampler(ksampler(name), frames, config, **options)


def levels(steps=6, last=0.0):
    return torch.cat([torch.linspace(8.0, 0.8, steps), torch.tensor([last])])


def draw(clips=CLIPS, seed=3):
    noise = torch.randn(clips * FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    clips_noise = [noise[:FRAMES]]
    for fresh in noise.split(FRAMES)[1:]:
        clips_noise.append(next_noise(clips_noise[-1][None], fresh[None], CONFIG)[0])
    return torch.cat(clips_noise)


class Algorithm1:
    """The published loop as a SAMPLER, with the step of Euler or DPM-Solver++ written out."""

    def __init__(self, second_order):
        self.second_order = second_order

    def sample(self, guider, sigmas, extra_args, callback, noise, *_, **__):
        cache, done = None, []
        for i, z in enumerate(noise.split(FRAMES)):
            z, new, old = z * sigmas[0], [], None
            for k in range(len(sigmas) - 1):
                z = z.clone()
                if cache is not None:
                    for j in range(CONFIG.overlap):
                        if k < CONFIG.staged_guidance * (len(sigmas) - 1) * (1 - j / CONFIG.overlap):
                            z[j] = cache[k][j]
                new.append(z.flip(0))
                options = {"model_options": extra_args["model_options"], "seed": extra_args["seed"] + i}
                x_0 = guider(z, sigmas[k] * z.new_ones(FRAMES), **options)
                z, old = self._step(z, x_0, old, sigmas, k), x_0
            cache = new
            done.append(z)
        return torch.cat(done)

    def _step(self, z, x_0, old, sigmas, k):
        ratio = sigmas[k + 1] / sigmas[k]
        if self.second_order and old is not None and sigmas[k + 1] > 0:
            h, last = (sigmas[k] / sigmas[k + 1]).log(), (sigmas[k - 1] / sigmas[k]).log()
            x_0 = x_0 + (x_0 - old) * h / (2 * last)
        return ratio * z + (1 - ratio) * x_0


def mixing(model):
    """The frames of a call depend on each other, as with a motion model; otherwise a replay would change nothing."""
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + args["denoised"].roll(1, 0) * 0.5)
    return model


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m"])
def test_it_is_algorithm_1_on_a_real_model(ran, tiny_sd, name):
    sigmas, noise, model = levels(), draw(), mixing(tiny_sd)
    result = ran(reusing(name), noise, sigmas=sigmas, model=model)
    reference = ran(Algorithm1(name == "dpmpp_2m"), noise, sigmas=sigmas, model=model)
    torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-3 * reference.std().item())
    plain = torch.cat([ran(ksampler(name), clip, sigmas=sigmas, model=model) for clip in noise.split(FRAMES)])
    assert torch.equal(result[:FRAMES], plain[:FRAMES])
    assert (result - plain)[FRAMES:].abs().mean() > 0.01 * plain.std()


@pytest.mark.parametrize("name", sorted(WHOLE | HISTORY_OF_EPS))
def test_one_clip_equals_the_result_of_the_sampler_alone(ran, name):
    noise = draw(1)
    result = ran(reusing(name), noise, sigmas=levels())
    expected = ran(ksampler(name), noise, sigmas=levels())
    rounding = 1e-4 * expected.std().item() if name.startswith("uni_pc") else 0.0
    torch.testing.assert_close(result, expected, rtol=0, atol=rounding)


def fixed(model, x_0):
    """The model with a constant prediction, so that the path of every solver is a straight line."""
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: x_0.expand_as(args["denoised"]).clone())
    return model


def inputs_of(model):
    """The model, and a list of (sigma, x) of every call."""
    calls = []
    model = model.clone()

    def note(args):
        calls.append((args["sigma"].flatten()[0].item(), args["input"].clone()))
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(note)
    return model, calls


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_the_replayed_latents_are_the_state_of_the_sampler(ran, tiny_sd, name):
    """With x_0 fixed for each clip a frame ends at x_0 + (z - x_0) sigma_end / sigma of its last replayed state z."""
    sigmas, noise = levels(last=0.4), draw(2)
    clips = [torch.full((1, 4, 1, 1), v) for v in (0.7, -0.9)]
    calls = []

    def by_clip(args):
        calls.append(args["sigma"])
        started = sum(s.flatten()[0] >= 7.99 for s in calls)  # every clip starts with one call at the highest level
        return clips[min(started, 2) - 1].expand_as(args["denoised"]).clone()

    model = tiny_sd.clone()
    model.set_model_sampler_post_cfg_function(by_clip)
    scale = model.get_model_object("latent_format").scale_factor
    result = ran(reusing(name), noise, sigmas=sigmas, model=model) * scale
    for j in range(FRAMES):
        x_0, mirror = clips[1].view(4, 1, 1), noise[FRAMES - 1 - j]
        guided = [k for k in range(6) if guided_frames(k, 6, CONFIG) > j]
        assert len(guided) == (4, 2, 0, 0)[j]
        if guided:
            level = sigmas[guided[-1]]
            first = clips[0].view(4, 1, 1)
            z = first + (mirror * sigmas[0] - first) * level / sigmas[0]
        else:
            level, z = sigmas[0], noise[FRAMES + j] * sigmas[0]
        torch.testing.assert_close(result[FRAMES + j], x_0 + (z - x_0) * sigmas[-1] / level, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", sorted(WHOLE | HISTORY_OF_EPS))
def test_the_model_sees_the_frames_of_the_clip_before(ran, tiny_sd, name):
    model, calls = inputs_of(mixing(tiny_sd))
    sigmas = levels()
    ran(reusing(name), draw(2), sigmas=sigmas, model=model)
    first, second = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    outer = {}
    for (level, x), (_, y) in zip(first, second, strict=True):
        k = min(range(6), key=lambda k: abs(sigmas[k].item() - level))
        # the state is the last input at its level, after Heun's second call at the level of the next step
        if abs(sigmas[k].item() - level) < 1e-3 * level:
            outer[k] = (x, y)
    assert sorted(outer) == list(range(6))
    for k, (x, y) in outer.items():
        count = guided_frames(k, 6, CONFIG)
        torch.testing.assert_close(y[:count], x.flip(0)[:count], rtol=1e-5, atol=1e-5)
        if count < CONFIG.overlap and k:
            assert (y[count] - x.flip(0)[count]).abs().mean() > 1e-3


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_noise_of_the_steps_is_reused_or_the_sampler_is_refused(ran, tiny_sd, name):
    """With all noise reused, the second clip is the first in reverse; with new noise per call it is not."""
    with pytest.raises(ValueError, match="adds new noise at every step"):
        reusing(name)
    noise, same = draw(1), fixed(tiny_sd, torch.full((1, 4, 1, 1), 0.5))
    both = torch.cat([noise, noise.flip(0)])
    config = Config(overlap=0, recycle=1e9, staged_guidance=0.0)
    sigmas = levels(last=0.4)
    result = ran(reusing(name, config, step_noise=True), both, sigmas=sigmas, model=same)
    torch.testing.assert_close(result[FRAMES:], result[:FRAMES].flip(0), rtol=1e-4, atol=1e-4)
    alone = ran(
        reusing(name, Config(overlap=0, recycle=0.0, staged_guidance=0.0), step_noise=True),
        both,
        sigmas=sigmas,
        model=same,
    )
    assert (alone[FRAMES:] - alone[:FRAMES].flip(0)).abs().mean() > 0.05


@pytest.mark.parametrize("name", ["dpm_adaptive", "dpm_fast", "sa_solver", "dpmpp_sde"])
def test_samplers_that_cannot_be_replayed_are_refused_by_name(comfy, name):
    with pytest.raises(ValueError, match=r"chooses its own steps or draws noise.*use one of .*dpmpp_2m.*, ddim"):
        reusing(name)


def test_churn_is_noise_too(ran):
    from stillmotion.model_patches.comfy_host.vidrd.reuse import ReuseSampler

    churned = ksampler("euler", s_churn=2.0)
    with pytest.raises(ValueError, match="adds new noise"):
        ReuseSampler(churned, FRAMES, CONFIG)
    with pytest.raises(ValueError, match="s_churn"):
        ran(ReuseSampler(churned, FRAMES, CONFIG, step_noise=True), draw(2), sigmas=levels())


def test_the_noise_of_all_clips(comfy):
    from stillmotion.model_patches.comfy_host.vidrd.reuse import ReuseNoise

    class Fixed:
        seed = 7

        def generate_noise(self, latent):
            return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(3))

    noise = ReuseNoise(Fixed(), FRAMES, CONFIG)
    assert noise.seed == 7
    result = noise.generate_noise({"samples": torch.zeros(CLIPS * FRAMES, 4, 8, 8)})
    assert torch.equal(result, draw())
    assert torch.equal(result, noise.generate_noise({"samples": torch.zeros(CLIPS * FRAMES, 4, 8, 8)}))
    with pytest.raises(ValueError, match="10 frames cannot be divided into clips of 4"):
        noise.generate_noise({"samples": torch.zeros(10, 4, 8, 8)})
    with pytest.raises(ValueError, match="as for image models"):
        noise.generate_noise({"samples": torch.zeros(1, 16, 4, 8, 8)})


def test_progress_counts_all_clips_and_ends_with_all_predictions(ran):
    calls = []
    ran(reusing("euler"), draw(2), sigmas=levels(), callback=lambda *args: calls.append(args))
    assert [(step, total) for step, _, _, total in calls] == [(i, 12) for i in range(12)]
    assert [len(x_0) for _, x_0, _, _ in calls] == [FRAMES] * 11 + [2 * FRAMES]


def test_a_run_leaves_nothing_for_the_next(ran):
    sampler, noise = reusing("dpmpp_2m"), draw(2)
    first = ran(sampler, noise, sigmas=levels())
    ran(sampler, draw(2, seed=9), sigmas=levels(4))
    assert torch.equal(ran(sampler, noise, sigmas=levels()), first)


def test_conditions_of_single_frames_are_refused_and_not_given_to_the_wrong_clip(ran):
    each = [[torch.cat([conditioning(i)[0][0] for i in range(2 * FRAMES)]), {}]]
    with pytest.raises(ValueError, match="has 8 rows for 8 frames, but clips of 4"):
        ran(reusing("euler"), draw(2), sigmas=levels(), positive=each)
    shared = [[torch.cat([conditioning(i)[0][0] for i in range(FRAMES)]), {}]]
    assert ran(reusing("euler"), draw(2), sigmas=levels(), positive=shared).isfinite().all()


def test_a_masked_part_of_the_latents_stays(ran):
    """The mask belongs to the frames: ComfyUI noises the unmasked part after the replay."""
    mask = torch.ones(2 * FRAMES, 1, 8, 8)
    mask[:, :, :, 4:] = 0
    result = ran(reusing("euler"), draw(2), sigmas=levels(), denoise_mask=mask)
    torch.testing.assert_close(result[..., 4:], torch.zeros_like(result[..., 4:]), rtol=0, atol=1e-4)
