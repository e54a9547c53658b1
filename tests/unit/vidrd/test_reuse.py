"""Reuse of the previous clip, compared with Algorithm 1 and with the required statistics of the noise."""

import math
from itertools import product

import pytest
import torch

from stillmotion.model_patches.vidrd.reuse import Config, History, Recorder, guided_frames, next_noise, reused_share

FRAMES, STEPS = 8, 10
SIGMAS = [*torch.linspace(10, 0.5, STEPS).tolist(), 0.0]


def denoiser(seed):
    """A model that mixes the frames of a clip, with a deterministic step."""
    weight = torch.randn(FRAMES, FRAMES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.3

    def step(z, k):
        x_0 = torch.tanh(torch.einsum("fg,vg...->vf...", weight, z / (1 + SIGMAS[k])))
        return z + (z - x_0) / SIGMAS[k] * (SIGMAS[k + 1] - SIGMAS[k])

    return step


def clip_noise(count, seed=0, videos=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(videos, FRAMES, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(count)]


def algorithm_1(fresh, step, m, alpha, beta):
    """The published algorithm, with a list of lists as cache, independent of our code."""
    cache, clips = None, []
    a, s = alpha / math.sqrt(1 + alpha**2), 1 / math.sqrt(1 + alpha**2)
    for noise in fresh:
        z = noise.clone() * SIGMAS[0]
        if cache is not None:
            for j in range(FRAMES):
                old = cache[0][:, j]
                z[:, j] = old if j < m else a * old + s * noise[:, j] * SIGMAS[0]
        new = []
        for k in range(STEPS):
            if cache is not None:
                for j in range(m):
                    if k < round(beta * STEPS * (m - j) / m, 9):
                        z[:, j] = cache[k][:, j]
            new.append(torch.stack([z[:, FRAMES - 1 - j] for j in range(FRAMES)], 1))
            z = step(z, k)
        cache = new
        clips.append(z)
    return clips


def run_recorder(fresh, step, config):
    before, clips = None, []
    for new in fresh:
        noise = new if before is None else next_noise(before.noise, new, config)
        recorder, z = Recorder(config, SIGMAS, before), noise * SIGMAS[0]
        for k in range(STEPS):
            z = step(recorder.step(k, z), k)
        before = recorder.history(noise)
        clips.append(z)
    return clips


@pytest.mark.parametrize(("m", "alpha", "beta"), [*product((0, 1, 4, 8), (0.0, 4.0), (0.0, 0.4, 1.0))])
def test_it_is_algorithm_1(m, alpha, beta):
    if m == 0:
        reference = algorithm_1(clip_noise(4, videos=2), denoiser(1), 0, alpha, 0.0)
    else:
        reference = algorithm_1(clip_noise(4, videos=2), denoiser(1), m, alpha, beta)
    clips = run_recorder(clip_noise(4, videos=2), denoiser(1), Config(overlap=m, recycle=alpha, staged_guidance=beta))
    for a, b in zip(reference, clips, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_noise_stays_unit_and_forgets_as_theory_says():
    """Correlation after two clips is a at the edges and a^2 in the middle; after 20 clips a^10 and a^20."""
    config, g = Config(recycle=1.0), torch.Generator().manual_seed(3)
    first = z = torch.randn(1, FRAMES, 40_000, generator=g, dtype=torch.float64)
    lags = {}
    for clip in range(1, 21):
        z = next_noise(z, torch.randn(1, FRAMES, 40_000, generator=g, dtype=torch.float64), config)
        lags[clip] = (z * first).mean(-1)[0]
        assert (z.std(-1) - 1).abs().max() < 0.02
        inside = torch.corrcoef(z[0]) - torch.eye(FRAMES)
        assert inside.abs().max() < 0.03
    a = reused_share(1.0)
    edge = torch.tensor([j < 4 or j >= FRAMES - 4 for j in range(FRAMES)])
    assert edge.all()
    for clips in (2, 4, 6):
        torch.testing.assert_close(lags[clips], torch.full((FRAMES,), a ** (clips / 2)).double(), rtol=0, atol=0.03)


def test_frames_in_the_middle_forget_twice_as_fast():
    config, g = Config(overlap=2, recycle=1.0), torch.Generator().manual_seed(4)
    first = torch.randn(1, FRAMES, 60_000, generator=g, dtype=torch.float64)
    z = first
    for _ in range(2):
        z = next_noise(z, torch.randn_like(first), config)
    a = reused_share(1.0)
    expected = torch.tensor([a if j < 2 or j >= FRAMES - 2 else a * a for j in range(FRAMES)]).double()
    torch.testing.assert_close((z * first).mean(-1)[0], expected, rtol=0, atol=0.03)


def test_extremes_of_recycling():
    old, new = clip_noise(2)
    assert torch.equal(next_noise(old, new, Config(recycle=0.0))[:, 4:], new[:, 4:])
    torch.testing.assert_close(next_noise(old, new, Config(recycle=1e9)), old.flip(1))
    assert torch.equal(next_noise(old, new, Config(overlap=FRAMES)), old.flip(1))


def test_only_replayed_states_are_stored():
    """The paper's 50 steps and 8 frames: 58 latents of frames, not 50 clips of 8."""
    sigmas = [*torch.linspace(10, 1, 50).tolist(), 0.0]
    recorder = Recorder(Config(), sigmas, None)
    z = clip_noise(1)[0]
    for k in range(50):
        assert recorder.step(k, z) is z  # without a previous clip, reuse has no effect
    history = recorder.history(z)
    assert sum(state.shape[1] for state in history.states.values()) == 20 + 15 + 10 + 5
    assert history.bytes() == (8 + 50) * 2 * 9 * 8


def test_a_state_is_not_written_to_and_not_shared():
    config = Config()
    (z,) = clip_noise(1)
    recorder = Recorder(config, SIGMAS, None)
    recorder.step(0, z)
    history = recorder.history(z)
    copy = history.states[0].clone()
    z.zero_()
    assert torch.equal(history.states[0], copy)
    (other,) = clip_noise(1, seed=5)
    before = other.clone()
    result = Recorder(config, SIGMAS, history).step(0, other)
    assert torch.equal(other, before)
    assert torch.equal(result[:, 0], copy[:, -1])
    assert torch.equal(result[:, 4:], other[:, 4:])


@pytest.mark.parametrize(("overlap", "frames"), [(9, 8), (2, 1)])
def test_more_overlap_than_frames_is_an_error(overlap, frames):
    z = torch.zeros(1, frames, 3)
    with pytest.raises(ValueError, match=f"overlap is {overlap}, but a clip has only {frames} frames"):
        next_noise(z, z, Config(overlap=overlap))
    with pytest.raises(ValueError, match=f"overlap is {overlap}, but a clip has only {frames} frames"):
        Recorder(Config(overlap=overlap), SIGMAS, None).step(0, z)


def test_another_schedule_size_or_setting_is_an_error():
    (z,) = clip_noise(1)
    recorder = Recorder(Config(), SIGMAS, None)
    for k in range(STEPS):
        recorder.step(k, z)
    history = recorder.history(z)
    with pytest.raises(ValueError, match="was sampled with 10 steps from 10 to 0, this clip with 9 steps"):
        Recorder(Config(), SIGMAS[1:], history)
    with pytest.raises(ValueError, match="this clip with 0 steps;"):
        Recorder(Config(), [], history)
    with pytest.raises(ValueError, match="this clip with 0 steps from 3 to 3;"):
        Recorder(Config(), [3.0], history)
    with pytest.raises(ValueError, match="clips of one video need the same number of frames"):
        next_noise(z, z[:, :4], Config())
    with pytest.raises(ValueError, match="has nothing for step 4"):
        Recorder(Config(staged_guidance=0.8), SIGMAS, history).step(4, z)
    with pytest.raises(ValueError, match="has latents of the shape"):
        Recorder(Config(), SIGMAS, history).step(0, z[..., :2])
    with pytest.raises(ValueError, match="needs its last 6 frames"):
        Recorder(Config(overlap=6), SIGMAS, history).step(0, z)


def test_a_history_comes_back_from_its_tensors_bit_for_bit():
    z, *step_noise = clip_noise(13)  # more than ten: their names are not in the order of the alphabet
    recorder = Recorder(Config(), SIGMAS, None)
    for k in range(STEPS):
        recorder.step(k, z + k)
    history = recorder.history(z, step_noise)
    again = History.of(dict(sorted(history.tensors().items())))
    assert again.sigmas == tuple(SIGMAS)
    assert torch.equal(again.noise, z)
    assert again.states.keys() == history.states.keys() == {0, 1, 2, 3}
    assert all(torch.equal(again.states[k], history.states[k]) for k in history.states)
    assert len(again.step_noise) == len(step_noise)
    assert all(torch.equal(a, b) for a, b in zip(again.step_noise, step_noise, strict=True))
    assert again.bytes() == history.bytes()


def test_less_overlap_than_before_takes_the_frames_next_to_the_join():
    old, new = clip_noise(2)
    recorder = Recorder(Config(), SIGMAS, None)
    recorder.step(0, old)
    result = Recorder(Config(overlap=2), SIGMAS, recorder.history(old)).step(0, new)
    assert torch.equal(result[:, :2], old.flip(1)[:, :2])
    assert torch.equal(result[:, 2:], new[:, 2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": -1}, "overlap is -1"),
        ({"recycle": -0.1}, "recycle is -0.1"),
        ({"recycle": math.inf}, "recycle is inf"),
        ({"staged_guidance": 1.5}, "staged_guidance is 1.5"),
        ({"staged_guidance": -0.1}, "staged_guidance is -0.1"),
        ({"rule": "other"}, "rule is 'other'; use one of code, paper"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_the_letter_of_the_paper_guides_one_step_more():
    for steps, code in ((25, [10, 8, 5, 3]), (50, [20, 15, 10, 5])):
        for rule, more in (("code", 0), ("paper", 1)):
            config = Config(rule=rule)  # pyright: ignore[reportArgumentType]
            counts = [guided_frames(k, steps, config) for k in range(steps)]
            assert [sum(c > j for c in counts) for j in range(4)] == [n + more for n in code]
    # without guidance, the paper's rule replaces what the noise has replaced already
    assert [guided_frames(k, 10, Config(staged_guidance=0.0, rule="paper")) for k in range(3)] == [4, 0, 0]
