"""The pocket Stable Diffusion as ComfyUI's MODEL, CLIP and VAE, its ControlNet and its LoRA.

ComfyUI recognises a checkpoint by the sizes of known families such as SD1.5, and there is no public way to add a
family. The pocket is therefore built here from the classes of ComfyUI's loader, with the sizes in the file's header.
"""

from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
from comfy import sd1_clip
from comfy.model_management import throw_exception_if_processing_interrupted as interrupted
from comfy.supported_models_base import ClipTarget
from torch import Tensor

from .. import checkpoint
from ..checkpoint import load_sized
from ..pocket import CONTROL, CONTROL_SYSTEM, SCALE, SYSTEM, TEXT, UNET, VAE, PocketConfig, part, stock_weights


class PocketLatents(comfy.latent_formats.SD15):
    """SD1.5's latent format with the pocket's scale; the training has fitted the preview colours."""

    def __init__(self, downscale: int, rgb: list[list[float]] | None, rgb_bias: list[float] | None) -> None:
        super().__init__(SCALE)
        self.spacial_downscale_ratio = downscale
        self.taesd_decoder_name = None
        if rgb is not None:
            self.latent_rgb_factors, self.latent_rgb_factors_bias = rgb, rgb_bias


def load_pocket(path: Path | str) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of a pocket file. CheckpointError says what is wrong with another file."""
    file = load_sized(path, SYSTEM, (UNET, TEXT, VAE), look=interrupted)
    config = PocketConfig.from_dict(file.config)
    weights = stock_weights(file.weights)
    model = _model(config, file.header, part(weights, UNET))
    model.cached_patcher_init = (_reload_model, (str(path),))
    return model, _clip(config, part(weights, TEXT)), _vae(config, part(weights, VAE))


def load_pocket_control(path: Path | str) -> comfy.controlnet.ControlNet:
    """CONTROL_NET of a pocket ControlNet file. CheckpointError says what is wrong with another file."""
    file = load_sized(path, CONTROL_SYSTEM, (CONTROL,), look=interrupted)
    management, config, weights = (
        comfy.model_management,
        PocketConfig.from_dict(file.config),
        part(file.weights, CONTROL),
    )
    dtypes = comfy.supported_models.SD15.supported_inference_dtypes
    device = management.get_torch_device()
    dtype = management.unet_dtype(model_params=sum(w.numel() for w in weights.values()), supported_dtypes=dtypes)
    cast = management.unet_manual_cast(dtype, device, dtypes)
    sizes: dict[str, Any] = _unet_config(config) | {"num_heads": config.heads, "num_head_channels": -1}
    placement = {"dtype": dtype, "device": management.unet_offload_device()}
    operations = comfy.ops.pick_operations(dtype, cast)
    net = comfy.cldm.cldm.ControlNet(**sizes, **placement, hint_channels=3, operations=operations)
    net.load_state_dict(weights)
    return comfy.controlnet.ControlNet(net, load_device=device, manual_cast_dtype=cast)


def with_pocket_lora(
    model: comfy.model_patcher.ModelPatcher, path: Path | str, strength: float
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the pocket's MODEL with its LoRA, applied as in ComfyUI: W + strength * (alpha / r) B A.

    ValueError for any other MODEL, whose layers do not have the sizes of the LoRA.
    """
    if not isinstance(model.model.latent_format, PocketLatents):
        family = type(model.model.model_config).__name__
        raise ValueError(
            "Load Pocket LoRA needs the model of Load Pocket Stable Diffusion and was given a model of the family "
            f"{family}. For other models use ComfyUI's own Load LoRA."
        )
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    patched: Any = comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)[0]
    return patched


def _reload_model(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Called by ComfyUI for a second copy on several GPUs, or for one without dynamic memory with LoRA hooks."""
    file = load_sized(path, SYSTEM, (UNET,), look=interrupted)
    weights = part(file.weights, UNET)
    return _model(PocketConfig.from_dict(file.config), file.header, weights, disable_dynamic=disable_dynamic)


def _unet_config(config: PocketConfig) -> dict[str, Any]:
    """The arguments of ComfyUI's UNetModel that its model detection would return for such a file."""
    layers, base = config.unet_layers, config.unet_channels[0]
    depth = [int(a) for a in config.unet_attention for _ in range(layers)]
    depth_up = [int(a) for a in config.unet_attention for _ in range(layers + 1)]
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": base,
        "num_res_blocks": [layers] * len(config.unet_channels),
        "channel_mult": [c // base for c in config.unet_channels],
        "transformer_depth": depth,
        "transformer_depth_output": depth_up,
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "context_dim": config.context,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
        "dims": 2,
    }


def _model(
    config: PocketConfig, header: dict[str, str], weights: dict[str, Tensor], *, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    management = comfy.model_management
    family: Any = comfy.supported_models.SD15(_unet_config(config))
    family.unet_config |= {"num_heads": config.heads, "num_head_channels": -1}
    preview = checkpoint.header_json(header, "preview") or {}
    family.latent_format = PocketLatents(config.downscale, preview.get("factors"), preview.get("bias"))
    count = sum(w.numel() for w in weights.values())
    device = management.get_torch_device()
    dtype = management.unet_dtype(model_params=count, supported_dtypes=family.supported_inference_dtypes)
    family.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, family.supported_inference_dtypes))
    model = family.get_model(weights, "", device=management.unet_inital_load_device(count, dtype))
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=management.unet_offload_device())
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    return patcher


def _clip(config: PocketConfig, weights: dict[str, Tensor]) -> comfy.sd.CLIP:
    sizes = _text_config(config)

    class Tokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}) -> None:  # noqa: B006 - ComfyUI's signature
            super().__init__(embedding_directory, tokenizer_data, clip_name="l", tokenizer=InnerTokenizer)

    class InnerTokenizer(sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}, **options) -> None:  # noqa: B006
            options |= {"embedding_size": config.context, "embedding_key": "clip_l"}
            super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data, **options)

    class Encoder(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}, **options) -> None:  # noqa: B006
            options |= {"textmodel_json_config": dict(sizes), "return_projected_pooled": False}
            super().__init__(device=device, dtype=dtype, model_options=model_options, **options)

    class Model(sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}, **options) -> None:  # noqa: B006
            options |= {"clip_name": "l", "clip_model": Encoder}
            super().__init__(device=device, dtype=dtype, model_options=model_options, **options)

    state = {f"clip_l.transformer.{k}": v for k, v in weights.items()}
    count = sum(w.numel() for w in weights.values())
    return comfy.sd.CLIP(ClipTarget(Tokenizer, Model), parameters=count, state_dict=state)


def _text_config(config: PocketConfig) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": config.context,
        "intermediate_size": 4 * config.context,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "eos_token_id": 49407,
        "projection_dim": config.context,
        "layer_norm_eps": 1e-5,
    }


def _vae(config: PocketConfig, weights: dict[str, Tensor]) -> comfy.sd.VAE:
    sizes = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.vae_channels[0],
        "ch_mult": [c // config.vae_channels[0] for c in config.vae_channels],
        "num_res_blocks": config.vae_layers,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": sizes, "embed_dim": 4}})
    vae.downscale_ratio = vae.upscale_ratio = config.downscale
    return vae
