"""A tiny Stable Diffusion of ComfyUI's own classes with random weights, and sampling runs with it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch

import stillmotion

CONTEXT = 32
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "dim": 64,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": CONTEXT,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 1,
}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": CONTEXT,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Set all weights: 1 for norms, 0 for biases, else normal with a variance that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            weight.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            weight.data = 0.6 * torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5


def random_model(family):
    """A MODEL of one of ComfyUI's families."""
    from comfy import model_management, model_patcher

    family.set_inference_dtype(torch.float32, None)
    model = family.get_model({}, "", device=torch.device("cpu"))
    randomise(model.diffusion_model, seed=0)
    device = model_management.get_torch_device()
    return model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


@pytest.fixture
def tiny_sd(comfy: ModuleType):
    """A MODEL of SD1.5's family, eps-prediction, 4 latent channels, 32 context channels; a new one for every test."""
    from comfy import supported_models

    return random_model(supported_models.SD15(UNET))


@pytest.fixture
def tiny_wan(comfy: ModuleType):
    """A MODEL of Wan 2.1's family: a flow, latents of 16 channels with a frame axis, 32 context channels."""
    from comfy import supported_models

    return random_model(supported_models.WAN21_T2V(WAN))


@pytest.fixture
def tiny_vae(comfy):
    """A VAE of ComfyUI with random weights: 8 pixels per latent, each frame separately."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    model: Any = TAESD(latent_channels=4)
    randomise(model.taesd_encoder, seed=1)
    randomise(model.taesd_decoder, seed=2)
    with torch.no_grad():  # images in 0..1 that differ
        last = model.taesd_decoder[-1]
        image = model.taesd_decoder(torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(3)))
        last.bias.fill_(0.5)
        last.weight *= 0.25 / image.std()
    parts = {"taesd_encoder": model.taesd_encoder, "taesd_decoder": model.taesd_decoder}
    weights = {f"{part}.{name}": w for part, module in parts.items() for name, w in module.state_dict().items()}
    return comfy.sd.VAE(sd={**weights, "vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)})


@pytest.fixture
def weight_file(tmp_path):
    """weight_file(system, model, dtype=torch.float32) -> the path of a StillMotion file of this model."""
    from stillmotion.model_patches import checkpoint

    def write(system, model, dtype=torch.float32):
        path = tmp_path / f"{system}_{len(list(tmp_path.iterdir()))}.safetensors"
        weights = {k: v.to(dtype) for k, v in model.state_dict().items()}
        checkpoint.save(path, system=system, config=model.config.to_dict(), weights=weights)
        return path

    return write


@pytest.fixture
def patched(comfy, tiny_sd, motion_file):
    """patched(frames=4, model=tiny_sd, file=..., options=..., **of motion_file) -> a MODEL with a motion model on it.

    motion_file is the test module's own: motion_file(**sizes) -> the path of one.
    """
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    def patch(*, frames=4, model=None, file=None, options=None, **sizes):
        return apply_motion(model or tiny_sd, load_motion(file or motion_file(**sizes)), frames=frames, **options or {})

    return patch


@pytest.fixture
def run_sampler(comfy: ModuleType):
    """run_sampler(model, frames=8, sampler="euler", ...) -> the latent, sampled like the KSampler node."""
    from comfy import sample

    generator = torch.Generator().manual_seed(11)
    conditionings = [[[torch.randn(1, 77, CONTEXT, generator=generator), {}]] for _ in range(2)]

    def run(model, *, frames=8, size=8, seed=1, steps=4, cfg=2.0, sampler="euler", scheduler="normal", **options):
        latent = options.pop("latent", torch.zeros(frames, 4, size, size))
        noise = options.pop("noise", None)
        noise = sample.prepare_noise(latent, seed) if noise is None else noise
        with torch.inference_mode():
            return sample.sample(
                model,
                noise,
                steps,
                cfg,
                sampler,
                scheduler,
                conditionings[0],
                conditionings[1],
                latent,
                seed=seed,
                disable_pbar=True,
                **options,
            )

    return run


@pytest.fixture
def windowed(comfy: ModuleType):
    """windowed(model, length) -> a clone that samples in context windows of `length` frames."""

    def patch(model, length, causal_window_fix=False):
        from comfy import context_windows

        handler = context_windows.IndexListContextHandler(
            context_windows.get_matching_context_schedule("standard_static"),
            context_windows.get_matching_fuse_method("pyramid"),
            context_length=length,
            context_overlap=1,
            causal_window_fix=causal_window_fix,
        )
        model = model.clone()
        model.model_options["context_handler"] = handler
        return model

    return patch


@pytest.fixture
def views(comfy, tmp_path):
    """Our module; the previews of its nodes go to a folder of this test."""
    import folder_paths

    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(tmp_path))
    from stillmotion.nodes import views

    yield views
    folder_paths.set_temp_directory(before)


@pytest.fixture
def network_output(comfy: ModuleType):
    """network_output(model, x, t, context) -> the output of a MODEL's U-Net within a real model call."""
    from comfy import model_management
    from comfy.patcher_extension import WrappersMP

    def run(model, x, t, context):
        outputs = []

        def listen(executor, *args, **kwargs):
            outputs.append(executor(x, t, context, *args[3:], **kwargs))
            return outputs[-1]

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", listen)
        model_management.load_models_gpu([model, *model.get_nested_additional_models()])
        model.pre_run()
        options = {"wrappers": model.wrappers, "patches": model.model_options["transformer_options"]["patches"]}
        options |= {"cond_or_uncond": [0], "sigmas": torch.ones(len(x))}
        model.model.apply_model(x, torch.ones(len(x)), c_crossattn=context, transformer_options=options)
        model.cleanup()
        return outputs[0]

    return run


@pytest.fixture
def schemas(comfy) -> list[Any]:
    """The schema of every node that the pack hands to ComfyUI."""

    async def ask():
        extension = await stillmotion.comfy_entrypoint()
        return [node.define_schema() for node in await extension.get_node_list()]

    with ThreadPoolExecutor(1) as thread:  # the browser tests may have left an event loop running in this one
        return thread.submit(asyncio.run, ask()).result()


@pytest.fixture
def flat_request(comfy: ModuleType):
    """flat_request(kind, **settings) -> a request of a render node from settings in one table: those of option nodes go
    into their options, `width` and `height` into a latent, `clips_again` into takes."""
    from dataclasses import fields

    from stillmotion.nodes.render import options
    from stillmotion.rendering.loop import parse_takes

    kinds = {
        "output_options": options.OutputOptions,
        "reuse_options": options.ReuseOptions,
        "artv_options": options.ArtvOptions,
        "stage_options": options.StageOptions,
    }

    def request(kind, **settings):
        width, height = settings.pop("width"), settings.pop("height")
        empty = {"samples": torch.zeros(1, 4, height // 4, width // 4), "downscale_ratio_spacial": 4}
        settings.setdefault("latent", empty)
        if "clips_again" in settings:
            settings["render_again"] = parse_takes(settings.pop("clips_again"))
        for name in {field.name for field in fields(kind)} & kinds.keys():
            names = {field.name for field in fields(kinds[name])} & settings.keys()
            settings[name] = kinds[name](**{option: settings.pop(option) for option in names})
        return kind(**settings)

    return request
