"""Motion LoRAs: the layouts that are read, all to the same weights, and what is refused by name."""

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.checkpoint import CheckpointError

BLOCK = "down_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0"
LAYERS = [
    *(f"{BLOCK}.attention_blocks.{i}.{name}" for i in (0, 1) for name in ("to_q", "to_k", "to_v", "to_out.0")),
    f"{BLOCK}.ff.net.0.proj",
    f"{BLOCK}.ff.net.2",
    "up_blocks.0.motion_modules.2.temporal_transformer.proj_in",
    "mid_block.motion_modules.0.temporal_transformer.proj_out",
]


def lora(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(LAYERS.index(name))
    return torch.randn(2, 8, generator=generator), torch.randn(6, 2, generator=generator)


def diffusers_name(name: str) -> str:
    name = name.replace(".temporal_transformer.", ".").replace(".attention_blocks.0.", ".attn1.")
    return name.replace(".attention_blocks.1.", ".attn2.")


def official(name: str, processor: str = ".processor") -> tuple[str, str, str]:
    module, _, layer = name.removesuffix(".0").rpartition(".") if "attention_blocks" in name else ("", "", name)
    stem = f"{module}{processor}.{layer}_lora" if module else f"{layer}_lora"
    return f"{stem}.down.weight", f"{stem}.up.weight", f"{stem}.alpha"


def kohya(name: str) -> tuple[str, str, str]:
    stem = f"lora_unet_{name.replace('.', '_')}"
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def peft(name: str) -> tuple[str, str, str]:
    stem = f"base_model.model.{name}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.alpha"


LAYOUTS = {
    "official": official,
    "wrapped": lambda name: tuple(f"module.{key}" for key in official(name)),
    "bare": lambda name: official(name, ""),
    "kohya": kohya,
    "peft": peft,
    "peft adapter": lambda name: tuple(
        key.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default") for key in peft(name)
    ),
    "diffusers": lambda name: tuple(f"unet.{key}" for key in official(diffusers_name(name))),
    "diffusers peft": lambda name: peft(diffusers_name(name)),
    "older diffusers": lambda name: (
        f"unet.{diffusers_name(name)}.lora_linear_layer.down.weight",
        f"unet.{diffusers_name(name)}.lora_linear_layer.up.weight",
        f"unet.{diffusers_name(name)}.alpha",
    ),
}


def write(path, layout, alpha=None):
    weights = {}
    for name in LAYERS:
        keys = LAYOUTS[layout](name)
        weights |= dict(zip(keys, lora(name), strict=False))
        if alpha is not None:
            weights[keys[2]] = torch.tensor(alpha)
    save_file(weights, path)
    return path


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_layers(tmp_path, layout, alpha):
    layers = checkpoint.load_motion_lora(write(tmp_path / "lora.safetensors", layout, alpha))
    assert set(layers) == {f"{name}.weight" for name in LAYERS}
    for name in LAYERS:
        down, up = lora(name)
        layer = layers[f"{name}.weight"]
        assert torch.equal(layer.down, down)
        assert torch.equal(layer.up, up)
        assert layer.alpha == alpha


def test_a_training_state_around_the_weights_is_removed(tmp_path):
    weights = dict(zip(official(LAYERS[0]), lora(LAYERS[0]), strict=False))
    torch.save({"state_dict": {f"module.{key}": weight for key, weight in weights.items()}}, tmp_path / "lora.ckpt")
    assert list(checkpoint.load_motion_lora(tmp_path / "lora.ckpt")) == [f"{LAYERS[0]}.weight"]


IMAGE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {f"{IMAGE}.down.weight": (2, 8), f"{IMAGE}.up.weight": (6, 2)},
            "it is a LoRA for the image model; load it with",
        ),
        ({f"{BLOCK}.norms.0.weight": (8,)}, "is not a motion LoRA: it is a motion model; load it with Load Motion"),
        ({"conv.weight": (1,)}, "its first keys are conv.weight; a motion LoRA has"),
        ({official(LAYERS[0])[0]: (2, 8)}, "misses the up matrix of .*to_q.weight"),
        ({official(LAYERS[0])[1]: (6, 2)}, "misses the down matrix of .*to_q.weight"),
        ({official(LAYERS[0])[0]: (2, 8), official(LAYERS[0])[1]: (6, 3)}, r"has matrices of \(2, 8\) and \(6, 3\)"),
        ({official(LAYERS[0])[0]: (2, 8, 1), official(LAYERS[0])[1]: (6, 2)}, "has matrices of"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, weights, message):
    save_file({key: torch.ones(size) for key, size in weights.items()}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=f"other.safetensors .*{message}"):
        checkpoint.load_motion_lora(tmp_path / "other.safetensors")


def test_nan_is_named(tmp_path):
    down, up = official(LAYERS[0])[:2]
    save_file({down: torch.full((2, 8), torch.nan), up: torch.ones(6, 2)}, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinite values"):
        checkpoint.load_motion_lora(tmp_path / "nan.safetensors")
