"""The identity of a job: the content of the weights, and neither their file name nor the version of the host."""

import json
from typing import Any

import pytest
import torch


@pytest.fixture
def of_model(comfy):
    from stillmotion.model_patches.comfy_host.base.fingerprint import of_model

    return of_model


def of_tensor(value):
    from stillmotion.model_patches.comfy_host.base.fingerprint import of_values

    return of_values([value])


def test_a_merged_matrix_makes_another_model(tiny_sd, of_model):
    """A LoRA that is merged into a checkpoint changes matrices alone, and keeps the file's name."""
    before = of_model(tiny_sd)
    matrices = {name: w for name, w in tiny_sd.model.named_parameters() if w.ndim == 2 and "attn" in name}
    for weight in matrices.values():
        original = weight.data.clone()
        rank_1 = torch.outer(torch.linspace(-1, 1, len(weight)), torch.linspace(1, 2, weight.shape[1]))
        weight.data += 1e-3 * rank_1
        assert of_model(tiny_sd) != before
        weight.data = original
    assert of_model(tiny_sd) == before


def test_text_encoders_and_autoencoders_count_by_their_matrices_too(comfy, tiny_vae, of_model):
    before = of_model(tiny_vae.patcher)
    weight: Any = next(w for w in tiny_vae.patcher.model.parameters() if w.ndim > 1)
    weight.data.mul_(1.5)
    assert of_model(tiny_vae.patcher) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("count", [3, 32769, 300001])
def test_one_changed_number_anywhere_is_another_tensor(comfy, dtype, count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = of_tensor(values)
    assert of_tensor(values.clone()) == before
    for place in {0, 1, count // 2, count - 2, count - 1}:
        changed = values.view(torch.uint8).clone()
        changed[place * values.element_size()] ^= 1
        assert of_tensor(changed.view(dtype)) != before


def test_order_shape_and_type_count(comfy):
    values = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    before = of_tensor(values)
    for other in (values.flip(0), values.t(), values.view(256, 1024), values.view(torch.int32)):
        assert of_tensor(other) != before


def test_where_a_tensor_is_stored_does_not_count(comfy):
    """Tensors of a file are parts of one block of memory, at any offset."""
    block = torch.randn(200001, generator=torch.Generator().manual_seed(0)).half()
    part = block[1:]
    assert of_tensor(part) == of_tensor(part.clone())
    square = block[:160000].view(400, 400)
    assert of_tensor(square.t()) == of_tensor(square.t().contiguous())


def test_quantised_weights_count_by_what_they_consist_of(comfy):
    from comfy.quant_ops import QuantizedTensor

    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    a, b = (QuantizedTensor.from_float(v, "TensorCoreFP8Layout") for v in (values, values * 1.5))
    assert of_tensor(a) == of_tensor(QuantizedTensor.from_float(values, "TensorCoreFP8Layout"))
    assert of_tensor(a) != of_tensor(b)


def test_the_versions_of_the_host_are_recorded_but_not_in_the_identity(comfy):
    from stillmotion.model_patches.comfy_host.base.fingerprint import of_machine

    assert set(of_machine()) == {"comfyui", "torch", "device"}


def test_no_engine_has_them_in_its_identity(long_identity):
    assert not {"comfyui", "torch", "device"} & set(json.dumps(long_identity["versions"]).replace('"', " ").split())
    assert "long video" in long_identity["versions"]


@pytest.fixture
def long_identity(comfy, tiny_sd, tiny_vae):
    from stillmotion.model_patches.comfy_host.video.long import LongVideo, make_guider
    from stillmotion.model_patches.vidrd.reuse import Config

    text = [[torch.zeros(1, 77, 32), {}]]
    options: dict[str, Any] = {"sampler": "ddim", "scheduler": "normal", "steps": 2, "seed": 1, "frames": 4}
    guider = make_guider(tiny_sd, text, text, 2.0)
    return LongVideo(guider, tiny_vae, size=(32, 32), config=Config(), **options).identity()
