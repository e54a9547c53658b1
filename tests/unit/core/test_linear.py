"""A matrix product that a CPU computes as a convolution gives the same result."""

import pytest
import torch
import torch.nn.functional as F

from stillmotion.model_patches.core import linear as module
from stillmotion.model_patches.core.linear import linear


def random_layer(rows: tuple[int, ...], i: int, o: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=generator) for shape in ((*rows, i), (o, i), (o,)))
    return x, w / i**0.5, b


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The outputs of all convolutions."""
    sizes: list[int] = []
    monkeypatch.setattr(module, "KERNELS", module.ONEDNN)
    monkeypatch.setattr(module.F, "conv2d", lambda x, w, b: sizes.append(len(w)) or torch.conv2d(x, w, b))
    return sizes


@pytest.mark.parametrize(("rows", "i", "o", "parts"), [((32, 16), 128, 96, 1), ((4, 64), 1280, 3000, 2)])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_linear_layer(convolutions, rows, i, o, parts, biased):
    x, w, b = random_layer(rows, i, o)
    result = linear(x, w, b if biased else None)
    want = F.linear(x.double(), w.double(), b.double() if biased else None)
    assert result.shape == (*rows, o)
    assert len(convolutions) == parts
    assert sum(convolutions) == o
    torch.testing.assert_close(result.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(8, 16), (260,), (17, 31)])
def test_few_or_odd_rows_stay_a_product(convolutions, rows):
    x, w, b = random_layer(rows, 256, 256)
    assert torch.equal(linear(x, w, b), F.linear(x, w, b))
    assert convolutions == []


def test_other_numbers_and_other_libraries_stay_a_product(convolutions, monkeypatch):
    x, w, b = (t.bfloat16() for t in random_layer((32, 16), 256, 256))
    assert torch.equal(linear(x, w, b), F.linear(x, w, b))
    monkeypatch.setattr(module, "KERNELS", module.TORCH)
    x, w, b = x.float(), w.float(), b.float()
    assert torch.equal(linear(x, w, b), F.linear(x, w, b))
    assert convolutions == []


@pytest.mark.parametrize(
    ("mkl", "maker", "kernels"),
    [
        (True, "AuthenticAMD", module.ONEDNN),
        (True, "GenuineIntel", module.TORCH),
        (True, "", module.TORCH),
        (False, "AuthenticAMD", module.TORCH),
    ],
)
def test_onednn_is_used_where_mkl_is_slow(monkeypatch, mkl, maker, kernels):
    monkeypatch.setattr(module.torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(module.torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(module, "processor_maker", lambda: maker)
    assert module._kernels() == kernels


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "maker"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n", "x86_64", "AuthenticAMD"),
        ("processor\t: 0\nBogoMIPS\t: 50.0\n", "aarch64", ""),
        (None, "Intel64 Family 6 Model 158 Stepping 10, GenuineIntel", "GenuineIntel"),
        (None, "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD", "AuthenticAMD"),
        (None, "", ""),
    ],
)
def test_the_maker_on_linux_and_elsewhere(monkeypatch, tmp_path, cpuinfo, processor, maker):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(module.platform, "processor", lambda: processor)
    assert module.processor_maker(file) == maker


def test_rows_that_are_not_in_order_in_memory(convolutions):
    x, w, b = random_layer((256, 16), 32, 64)
    x = x.transpose(0, 1)
    torch.testing.assert_close(linear(x, w, b), F.linear(x, w, b), rtol=1e-5, atol=1e-5)
    assert convolutions == [64]


def test_parts_that_do_not_divide_the_outputs(convolutions, monkeypatch):
    monkeypatch.setattr(module, "WEIGHTS", 72)
    x, w, _ = random_layer((1024, 16), 32, 9)
    torch.testing.assert_close(linear(x, w, None), F.linear(x, w), rtol=1e-5, atol=1e-5)
    assert convolutions == [2, 2, 2, 2, 1]


def test_gradients_are_those_of_the_linear_layer(convolutions):
    result, want = ([t.requires_grad_() for t in random_layer((64, 16), 64, 128)] for _ in range(2))
    linear(*result).square().sum().backward()
    F.linear(*want).square().sum().backward()
    assert convolutions == [128]
    for a, b in zip(result, want, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-2)
