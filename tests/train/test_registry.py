"""The registry: a system that only this file defines is trained, examined, previewed, exported, loaded and ablated."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import nn

from stillmotion.model_patches import checkpoint, systems
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.diffusers_host.motion import attach
from stillmotion.model_patches.diffusers_host.pocket import new_text_encoder, new_unet, new_vae
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.training import registry
from stillmotion.training.__main__ import main
from stillmotion.training.data import latents
from stillmotion.training.data.latents import Latents, weights_hash
from stillmotion.training.plans.common import BasePlan, EpsLossTable
from stillmotion.training.systems import bases
from stillmotion.training.systems.bases import Base, clip_ids
from stillmotion.training.systems.clip_task import ClipTask
from stillmotion.training.systems.preview import Preview

SMALL = PocketConfig(unet_channels=(32, 64), unet_attention=(False, True), vae_channels=(32, 32, 32), context=32)
CONFIG = """
system = "toy"
[data]
latents = "anywhere"
frames = 3
[samples]
every = 1
steps = 1
columns = 2
prompts = ["a red star"]
[train]
steps = 2
batch = 2
log_every = 1
"""


@dataclass(frozen=True, kw_only=True)
class ToyModelTable:
    heads: int = 4
    beta_schedule: str = "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012


@dataclass(frozen=True, kw_only=True)
class ToyPlan(BasePlan):
    system: ClassVar[str] = "toy"
    model: ToyModelTable = field(default_factory=ToyModelTable)
    loss: EpsLossTable = field(default_factory=EpsLossTable)


class ToyModel(nn.Module):
    """Temporal layers, and a bias of the prediction."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.layers, self.bias = MotionModel(config), nn.Parameter(torch.zeros(4, 1, 1))


class ToyTask(ClipTask[ToyPlan]):
    def __init__(self, base: Base, plan: ToyPlan, cache: Latents) -> None:
        super().__init__(base, plan, cache)
        channels = base.config.unet_channels
        config = MotionConfig(block_channels=channels, layers_per_block=1, heads=plan.model.heads, max_frames=8)
        self.toy = ToyModel(config)
        self.handle = attach(self.unet, self.toy.layers)

    def frozen_hash(self):
        return weights_hash(self.unet)

    def part_of(self, parameter):
        return super().part_of(parameter.removeprefix("toy."))

    def predict(self, x_t, t, context):
        frames = x_t.shape[1]
        self.handle.frames = frames
        t, context = t.repeat_interleave(frames), context.repeat_interleave(frames, 0)
        return self.unet(x_t.flatten(0, 1), t, context).sample.unflatten(0, x_t.shape[:2]) + self.toy.bias

    def forward(self, samples):
        clips, _ = self.noised(samples)
        error = (self.predict(clips.x_t, clips.t, clips.context) - clips.noise).square().flatten(1).mean(1)
        return {"loss": (self.level_weight(clips.alpha_bar) * error).mean(), **self.figures(error, clips.t)}


class ToyTrainer:
    FILE: str = "toy.safetensors"

    def prepare(self, plan: Any, tokenizer: Path) -> tuple[Any, Any]:
        base = bases.load(plan.base, tokenizer)
        return ToyTask(base, plan, latents.for_training(plan.data, base.vae)), base

    def preview(self, task: Any, base: Any, plan: Any) -> Preview:
        return Preview(task, base.vae, plan)

    def write(self, task: Any, average: dict[str, Any], path: Path) -> None:
        weights = task.toy.state_dict() | {name.removeprefix("toy."): value for name, value in average.items()}
        config = task.toy.layers.config.to_dict()
        checkpoint.save(path, system="toy", config=config, weights=weights, header=task.header())


@dataclass(frozen=True, kw_only=True)
class ToyBudget:
    prompts: int = 2
    sampling: int = 2
    length: int = 1


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    out: Path
    tokenizer: Path
    budget: ToyBudget
    split: str
    processes: int


class ToyAblation:
    OPTIONS: tuple[str, ...] = ("length",)
    Options: Any = ToyOptions
    Budget: Any = ToyBudget
    QUICK: Any = ToyBudget(prompts=1)

    def ablate(self, options: Any) -> dict[str, Any]:
        options.out.mkdir(parents=True)
        (options.out / "ablation.json").write_text(json.dumps(asdict(options.budget)))
        return {}


@pytest.fixture
def toy(monkeypatch, comfyui_dir):
    """The registered toy system, with a tiny base and six clips of noise."""
    values = torch.randn(6, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3)).half()
    cache = Latents(values, [0.0, 0.5, 1.0], 0, [f"clip {i}" for i in range(6)])

    def load(*_):
        torch.manual_seed(0)
        networks = new_unet(SMALL), new_vae(SMALL), new_text_encoder(SMALL)
        for network in networks:
            network.eval().requires_grad_(False)
        ids = clip_ids(comfyui_dir / "comfy" / "sd1_tokenizer")
        return Base(*networks, SMALL, ids, weights_hash(networks[0]))

    monkeypatch.setattr(bases, "load", load)
    monkeypatch.setattr(latents, "for_training", lambda *_: cache)
    weights = systems.WeightSystem(
        name="toy",
        label="toy",
        model=lambda config: ToyModel(MotionConfig.from_dict(config)),
        summary=lambda _config, weights: f" toy with {len(weights)} weights",
        layers=systems.MOTION,
        temporal=lambda config, weights: (
            dict(config),
            {name.removeprefix("layers."): value for name, value in weights.items() if name != "bias"},
        ),
    )
    systems.register(weights)
    registry.register(registry.System(name="toy", plan=ToyPlan, trainer=ToyTrainer, ablations={"toy": ToyAblation}))
    yield "toy"
    registry.unregister("toy")
    systems.unregister("toy")


def typed(*arguments):
    return main(list(map(str, arguments)))


@pytest.mark.slow
def test_a_toy_system_needs_no_line_in_the_package(toy, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "toy.toml").write_text(CONFIG)
    out = tmp_path / "run"
    assert typed("doctor", tmp_path / "toy.toml") == 0
    assert "parameters_layers_m" in caplog.text
    assert "gradient on" in caplog.text
    assert typed("train", tmp_path / "toy.toml", "--out", out) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    with Image.open(out / "samples" / "step-00000002.png") as picture:
        assert picture.size == (2 * 32, 32)
    file = checkpoint.load(out / "toy.safetensors", expect="toy")
    assert checkpoint.describe(file) == f"stillmotion/1 toy with {len(file.weights)} weights, float32"
    assert file.weights["bias"].any()
    motion = tmp_path / "mm.safetensors"
    assert typed("export", out / "toy.safetensors", "--layout", "animatediff", "--out", motion) == 0
    assert "not exported: bias" in caplog.text
    exported = checkpoint.load(motion)
    assert exported.system == systems.MOTION
    assert all(torch.equal(value, file.weights[f"layers.{name}"]) for name, value in exported.weights.items())
    assert typed("ablate", "toy", "--quick", "--length", 7, "--out", tmp_path / "ablation") == 0
    assert json.loads((tmp_path / "ablation" / "ablation.json").read_text()) == {
        "prompts": 1,
        "sampling": 2,
        "length": 7,
    }


def test_comfyui_loads_the_temporal_layers_of_a_toy_file(toy, comfy, tmp_path):
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    config = MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8)
    model, path = ToyModel(config), tmp_path / "toy.safetensors"
    checkpoint.save(path, system="toy", config=config.to_dict(), weights=model.state_dict())
    motion = load_motion(path)
    assert motion.config == config
    stored = motion.patcher.model.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in model.layers.state_dict().items())


def test_an_option_of_another_ablation_is_refused(toy, tmp_path):
    with pytest.raises(SystemExit, match="--rows is not an option of `ablate toy`; omit it"):
        typed("ablate", "toy", "--rows", "all", "--out", tmp_path / "ablation")


def test_a_name_is_taken_once(toy):
    with pytest.raises(ValueError, match="already a system or an ablation called 'toy'"):
        registry.register(registry.System(name="toy", plan=ToyPlan, trainer=ToyTrainer))
    with pytest.raises(ValueError, match="called 'pseudo'"):
        registry.register(
            registry.System(name="other", plan=ToyPlan, trainer=ToyTrainer, ablations={"pseudo": ToyAblation})
        )
    with pytest.raises(ValueError, match="already a weight system called 'motion'"):
        systems.register(
            systems.WeightSystem(name="motion", label="x", model=lambda _: nn.Identity(), summary=lambda *_: "")
        )


def test_a_toy_that_is_gone_is_not_known(tmp_path, comfyui_dir):
    (tmp_path / "toy.toml").write_text(CONFIG)
    with pytest.raises(SystemExit, match=r"system is 'toy'; use one of harivo, vidrd, vidrd_decoder, artv, dreamvideo"):
        typed("train", tmp_path / "toy.toml", "--out", tmp_path / "run")


@pytest.mark.parametrize("name", registry.names())
def test_every_registered_system_is_in_the_documentation(name, root):
    page = (root / "docs" / "training.md").read_text(encoding="utf-8")
    row = f"| `{name}` | `{registry.get(name).trainer().FILE}` |"
    assert row in page
