"""Configs: unknown keys, wrong types and values out of range are named; the bundled files are complete."""

import pytest

from stillmotion.training import registry
from stillmotion.training.plans.config import CONFIGS
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.registry import read

GOOD = "[train]\nsteps = 10\nbatch = 2\n"


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", ["harivo_pocket", "harivo_sd15"])
def test_the_bundled_configs_are_read(name):
    plan = read(registry.find(name))
    assert plan.train.out.name == name
    assert plan.data.frames <= plan.model.max_frames


def test_the_paper_s_values_are_in_the_sd15_config():
    plan = read(CONFIGS / "harivo_sd15.toml")
    assert (plan.data.frames, plan.train.lr, plan.train.lr_end, plan.train.lr_decay_share) == (24, 1e-4, 1e-5, 1.0)
    assert (plan.model.beta_schedule, plan.model.beta_start, plan.model.beta_end) == ("linear", 0.00085, 0.012)
    assert (plan.loss.tau, plan.model.tokens, plan.loss.dsm) == (0.1, 3, "plain")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "[data]\nframez = 3\n", r"data\.framez is unknown; did you mean frames\?"),
        (GOOD + "[losss]\n", r"no table \[losss\]; did you mean loss\?"),
        (GOOD + "[loss]\ntau = 'x'\n", r"loss\.tau is 'x'; it must be a number"),
        (GOOD + "[model]\nmapping = 1\n", r"model\.mapping is 1; it must be true or false"),
        (GOOD + "[data]\nframes = 2.5\n", r"data\.frames is 2\.5; it must be an integer"),
        (GOOD + "[loss]\nsoftening = 'cubic'\n", r"loss\.softening is 'cubic'; use one of sqrt_alpha_bar"),
        (GOOD + "[loss]\ntrs = -1\n", r"loss\.trs is -1\.0; it must be at least 0"),
        (GOOD + "[data]\nframes = 64\n", r"data\.frames is 64, but model\.max_frames is 32"),
        (GOOD + "[base]\nhalf = true\n", r"base\.half needs train\.precision"),
        (GOOD + "[samples]\nprompts = 'a cat'\n", r"samples\.prompts is 'a cat'; give a list"),
        ("steps = 10\n", r"steps is outside of a table"),
        ("[train]\nbatch = 2\n", r"train: .*steps"),
        ("[train\n", r"is not TOML"),
        (GOOD + "out = 'x'\n", r"train\.out cannot be set in the file; use --out"),
    ],
)
def test_invalid_configs_are_named(written, text, message):
    with pytest.raises(ConfigError, match=message):
        read(written(text))


def test_a_missing_file_and_an_unknown_name_are_reported():
    with pytest.raises(ConfigError, match=r"no config harivo_pokcet; .* harivo_pocket, harivo_sd15"):
        registry.find("harivo_pokcet")
    with pytest.raises(ConfigError, match="there is no config file"):
        read(registry.find("nowhere.toml"))


def test_changes_win_over_the_file(written):
    plan = read(written(GOOD), ["train.steps=3", "loss.trs = 0", "base.weights=random", 'samples.prompts=["a"]'])
    assert (plan.train.steps, plan.loss.trs, plan.base.weights, plan.samples.prompts) == (3, 0.0, "random", ("a",))
    with pytest.raises(ConfigError, match=r"loss\.trss is unknown; did you mean trs"):
        read(written(GOOD), ["loss.trss=1"])
    with pytest.raises(ConfigError, match=r"--set trs=1: write it as TABLE\.KEY=VALUE"):
        read(written(GOOD), ["trs=1"])


def test_a_resumed_run_must_have_the_same_settings_if_they_change_the_result(written):
    path = written(GOOD)
    before = read(path).settings()
    assert read(path, ["samples.every=7", "data.latents=elsewhere", "model.start=bundled"]).settings() == before
    for change in ("loss.trs=0.5", "model.tokens=0", "data.drop=0.2", "base.kind=sd15"):
        assert read(path, [change]).settings() != before
