"""ComfyUI's own ways to change attention and to compile a MODEL act on our layers."""

import pytest
import torch

from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig
from stillmotion.model_patches.harivo.model import HarivoModel

FRAMES = 4
SIZES = MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8)  # of conftest's tiny_sd
MODULES = 6  # slots of this U-Net; no middle module


def with_weights(model, seed=1):
    """Random weights as after training: no layer is zero or neutral."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def motion_file(weight_file):
    return lambda: weight_file("motion", with_weights(MotionModel(SIZES)))


def overridden(model, change):
    """A clone with an attention override as other nodes set it; `change` gets the number of tokens of each call."""
    clone = model.clone()

    def override(function, q, k, v, heads, *args, **kwargs):
        result = function(q, k, v, heads, *args, **kwargs)
        return change(q.shape[1], kwargs, result)

    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def test_an_attention_override_acts_on_the_temporal_layers(patched, run_sampler):
    model, calls = patched(frames=FRAMES), []

    def listen(tokens, kwargs, result):
        calls.append((tokens, kwargs.get("low_precision_attention"), "cond_or_uncond" in kwargs["transformer_options"]))
        return result

    def muted(tokens, _kwargs, result):
        return torch.zeros_like(result) if tokens == FRAMES else result

    plain = run_sampler(model, frames=FRAMES, size=16, steps=1)
    assert torch.equal(run_sampler(overridden(model, listen), frames=FRAMES, size=16, steps=1), plain)
    temporal = [call for call in calls if call[0] == FRAMES]
    # two attentions in each module; they ask for full precision and pass on ComfyUI's options
    assert temporal == [(FRAMES, False, True)] * 2 * MODULES
    assert not torch.equal(run_sampler(overridden(model, muted), frames=FRAMES, size=16, steps=1), plain)


def test_an_attention_override_acts_on_the_mapping_network(patched, run_sampler, weight_file):
    config = HarivoConfig(motion=SIZES, mapping=MappingConfig(max_frames=8), tokens=None)
    model, calls = patched(frames=FRAMES, file=weight_file("harivo", with_weights(HarivoModel(config)))), []

    def listen(tokens, _kwargs, result):
        calls.append(tokens)
        return result

    run_sampler(overridden(model, listen), frames=FRAMES, size=16, steps=1)
    assert calls.count(FRAMES) == 2 * MODULES + 1


@pytest.mark.slow
def test_a_compiled_model_is_the_same_and_is_not_compiled_again_for_another_clip(patched, run_sampler):
    """Compiled as ComfyUI's Torch Compile Model does it; a backend that runs the traced graphs as they are."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, graphs = patched(frames=FRAMES), []
    expected = [run_sampler(model, frames=FRAMES, steps=2, seed=seed) for seed in (1, 2)]
    compiled = model.clone()

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    set_torch_compile_wrapper(compiled, backend=backend)  # pyright: ignore[reportArgumentType]
    results, counts = [], []
    for seed in (1, 2):
        results.append(run_sampler(compiled, frames=FRAMES, steps=2, seed=seed))
        counts.append(len(graphs))
    torch.compiler.reset()
    assert 0 < counts[0] == counts[1]
    for result, plain in zip(results, expected, strict=True):
        assert torch.equal(result, plain)
    assert torch.equal(run_sampler(model, frames=FRAMES, steps=2, seed=1), expected[0])
