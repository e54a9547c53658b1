"""SparseCtrl: the network equals that of diffusers, and its files are told by their content."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.checkpoint import CheckpointError
from stillmotion.model_patches.sparsectrl.config import LATENT, PIXELS, SparseConfig
from stillmotion.model_patches.sparsectrl.model import SparseControl

FRAMES = 4
SMALL = {
    "block_channels": (32, 64),
    "attention": (True, False),
    "heads": (8, 8),
    "layers_per_block": 1,
    "context_dim": 24,
    "hint_channels": (16, 32),
    "max_frames": 8,
}


def random_network(hint: str) -> SparseControl:
    torch.manual_seed(0)
    network = SparseControl(SparseConfig(**SMALL, hint=hint)).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def official(network: SparseControl) -> dict[str, torch.Tensor]:
    """The weights under the names of the authors' file."""
    return {key.removeprefix("temporal."): weight for key, weight in network.state_dict().items()}


def diffusers_names(network: SparseControl) -> dict[str, torch.Tensor]:
    from stillmotion.model_patches.layouts import to_diffusers

    return to_diffusers(official(network))


def reference(network: SparseControl, hint: str):
    """diffusers' model with the same weights."""
    from diffusers.models.controlnets.controlnet_sparsectrl import SparseControlNetModel

    model = SparseControlNetModel(
        conditioning_channels=4 if hint == LATENT else 3,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=8,
        num_attention_heads=8,
        conditioning_embedding_out_channels=(16, 32),
        motion_max_seq_length=8,
        motion_num_attention_heads=8,
        concat_conditioning_mask=True,
        use_simplified_condition_embedding=hint == LATENT,
    )
    model.load_state_dict(diffusers_names(network), strict=True)
    return model.eval()


def per_clip(network: SparseControl) -> SparseControl:
    """diffusers computes the statistics of the temporal modules' GroupNorm over the clip."""
    temporal: Any = network.temporal
    for module in temporal.modules_by_slot().values():
        module.temporal_transformer.per_clip = True
    return network


@torch.no_grad()
@pytest.mark.parametrize("hint", [LATENT, PIXELS])
def test_it_equals_diffusers(hint):
    network = per_clip(random_network(hint))
    generator = torch.Generator().manual_seed(1)
    side, channels = (8, 4) if hint == LATENT else (16, 3)
    hints = torch.zeros(2, FRAMES, channels, side, side)
    hints[:, [0, 2]] = torch.rand(2, 2, channels, side, side, generator=generator)
    mask = torch.zeros(2, FRAMES, 1, side, side)
    mask[:, [0, 2]] = 1.0
    context = torch.randn(2, 5, 24, generator=generator)
    t = torch.tensor([300, 700])
    down, mid = reference(network, hint)(
        torch.randn(2, 4, FRAMES, 8, 8, generator=generator),
        t,
        encoder_hidden_states=context.repeat_interleave(FRAMES, dim=0),
        controlnet_cond=hints.transpose(1, 2),
        conditioning_mask=mask.transpose(1, 2),
        return_dict=False,
    )
    z = network.encode(hints.flatten(0, 1), mask.flatten(0, 1))
    times, contexts = (values.repeat_interleave(FRAMES, dim=0) for values in (t, context))
    residuals = network(times, contexts, z, FRAMES)
    for output, expected in zip([*residuals.down, residuals.mid], [*down, mid], strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("hint", [LATENT, PIXELS])
def test_a_new_network_adds_nothing(hint):
    network = SparseControl(SparseConfig(**SMALL, hint=hint))
    side, channels = (8, 4) if hint == LATENT else (16, 3)
    z = network.encode(torch.rand(FRAMES, channels, side, side), torch.ones(FRAMES, 1, side, side))
    residuals = network(torch.full((FRAMES,), 500), torch.randn(FRAMES, 5, 24), z, FRAMES)
    assert not any(residual.any() for residual in [*residuals.down, residuals.mid])


@torch.no_grad()
def test_an_image_on_one_frame_reaches_the_others():
    network = random_network(LATENT)
    hints, mask = torch.zeros(FRAMES, 4, 8, 8), torch.zeros(FRAMES, 1, 8, 8)
    t, context = torch.full((FRAMES,), 500), torch.randn(1, 5, 24).repeat(FRAMES, 1, 1)
    without = network(t, context, network.encode(hints, mask), FRAMES)
    hints[0], mask[0] = torch.randn(4, 8, 8), 1.0
    with_image = network(t, context, network.encode(hints, mask), FRAMES)
    change = (with_image.mid - without.mid).abs().amax((1, 2, 3))
    assert (change > 1e-3).all()


LAYOUTS = {
    "official": official,
    "without tables": lambda network: {k: v for k, v in official(network).items() if "pos_encoder" not in k},
    "diffusers": diffusers_names,
}


@pytest.mark.parametrize("hint", [LATENT, PIXELS])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_are_read(tmp_path, layout, hint):
    network = random_network(hint)
    weights = {key: weight.contiguous().clone() for key, weight in LAYOUTS[layout](network).items()}
    save_file(weights, tmp_path / "sparse.safetensors")
    config, loaded, info = checkpoint.load_sparsectrl(tmp_path / "sparse.safetensors")
    expected = 32 if layout == "without tables" else 8
    assert (config.hint, config.max_frames, config.block_channels) == (hint, expected, (32, 64))
    assert config.attention == (True, False)
    for key, weight in network.state_dict().items():
        assert torch.equal(loaded[key][:, :8] if key.endswith(".pe") else loaded[key], weight), key
    images = "RGB images" if hint == LATENT else "scribbles or edges"
    assert info == f"SparseCtrl for {images}, up to {expected} frames, float32"


def test_the_authors_file_is_unwrapped(tmp_path):
    weights = {f"module.{key}": weight for key, weight in official(random_network(LATENT)).items()}
    torch.save({"controlnet": weights, "animatediff_config": {"a": 1}, "global_step": 3}, tmp_path / "sparse.ckpt")
    config, _, _ = checkpoint.load_sparsectrl(tmp_path / "sparse.ckpt")
    assert config.hint == LATENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if "motion" not in k}, "a ControlNet without temporal layers; load it"),
        (
            lambda w: {k: v for k, v in w.items() if not k.startswith("controlnet_")},
            "something else: its first",
        ),
        (lambda w: {k: v for k, v in w.items() if k != "conv_in.bias"}, "misses conv_in.bias"),
        (lambda w: {k: v for k, v in w.items() if not k.startswith("mid_block.attent")}, "is an incomplete SparseCtrl"),
        (lambda w: w | {"conv_in.bias": torch.full((32,), torch.nan)}, "NaN or infinite"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, change, message):
    weights = change(official(random_network(LATENT)))
    save_file({key: weight.contiguous() for key, weight in weights.items()}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=rf"other\.safetensors .*{message}"):
        checkpoint.load_sparsectrl(tmp_path / "other.safetensors")


def test_the_sizes_of_the_published_files():
    """Of v3_sd15_sparsectrl_rgb: a ControlNet of SD1.5 without its hint encoder, and eight temporal modules."""
    with torch.device("meta"):
        rgb, scribble = (SparseControl(SparseConfig(hint=hint)).state_dict() for hint in (LATENT, PIXELS))
    assert rgb["controlnet_cond_embedding.weight"].shape == (320, 5, 3, 3)
    assert scribble["controlnet_cond_embedding.conv_in.weight"].shape == (16, 4, 3, 3)
    assert scribble["controlnet_cond_embedding.conv_out.weight"].shape == (320, 256, 3, 3)
    assert len({key.split(".temporal_transformer")[0] for key in rgb if "motion_modules" in key}) == 8


def test_a_sparsectrl_file_in_the_list_of_motion_models_is_named(tmp_path):
    save_file(official(random_network(LATENT)), tmp_path / "sparse.safetensors")
    with pytest.raises(CheckpointError, match=r"is a ControlNet or SparseCtrl: load it with .* Load SparseCtrl"):
        checkpoint.load(tmp_path / "sparse.safetensors")
