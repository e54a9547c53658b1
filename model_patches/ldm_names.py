"""The two names of every Stable Diffusion weight: latent-diffusion's (files, ComfyUI) and diffusers'.

Pure functions on names, for U-Nets, their ControlNets and autoencoders of any depth with the same number of layers in
each block. Shapes differ only in the autoencoder's attention: 1x1 convolutions in latent-diffusion, linear layers in
diffusers.
"""

from collections.abc import Iterable

from torch import Tensor

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def unet_prefixes(blocks: int, layers: int, attention: tuple[bool, ...]) -> dict[str, str]:
    """latent-diffusion prefix -> diffusers prefix. `attention[i]`: down block i has cross-attention."""
    names = dict(UNET_ENDS)
    for i in range(blocks):
        for j in range(layers):
            names |= _layer(f"input_blocks.{1 + i * (layers + 1) + j}", f"down_blocks.{i}", j, attention[i])
        if i < blocks - 1:
            names[f"input_blocks.{(i + 1) * (layers + 1)}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
    names |= _resnet("middle_block.0", "mid_block.resnets.0") | _resnet("middle_block.2", "mid_block.resnets.1")
    names["middle_block.1"] = "mid_block.attentions.0"
    for i, has_attention in enumerate(reversed(attention)):
        for j in range(layers + 1):
            names |= _layer(f"output_blocks.{i * (layers + 1) + j}", f"up_blocks.{i}", j, has_attention)
        if i < blocks - 1:
            last = f"output_blocks.{i * (layers + 1) + layers}.{1 + has_attention}.conv"
            names[last] = f"up_blocks.{i}.upsamplers.0.conv"
    return names


def _layer(ldm: str, diffusers: str, j: int, attention: bool) -> dict[str, str]:
    names = _resnet(f"{ldm}.0", f"{diffusers}.resnets.{j}")
    if attention:
        names[f"{ldm}.1"] = f"{diffusers}.attentions.{j}"
    return names


def _resnet(ldm: str, diffusers: str) -> dict[str, str]:
    return {f"{ldm}.{a}": f"{diffusers}.{b}" for a, b in RESNET.items()}


def vae_prefixes(blocks: int, layers: int) -> dict[str, str]:
    """latent-diffusion prefix -> diffusers prefix, for AutoencoderKL."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, side, count in (("encoder", "down", layers), ("decoder", "up", layers + 1)):
        names |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.norm_out": f"{half}.conv_norm_out"}
        names[f"{half}.conv_out"] = f"{half}.conv_out"
        for i in range(blocks):
            ldm = f"{half}.{side}.{i}"
            diffusers = f"{half}.{side}_blocks.{i if side == 'down' else blocks - 1 - i}"
            for j in range(count):
                names |= _vae_resnet(f"{ldm}.block.{j}", f"{diffusers}.resnets.{j}")
            names[f"{ldm}.{side}sample.conv"] = f"{diffusers}.{side}samplers.0.conv"
        for k in (1, 2):
            names |= _vae_resnet(f"{half}.mid.block_{k}", f"{half}.mid_block.resnets.{k - 1}")
        for a, b in VAE_ATTENTION.items():
            names[f"{half}.mid.attn_1.{a}"] = f"{half}.mid_block.attentions.0.{b}"
    return names


def _vae_resnet(ldm: str, diffusers: str) -> dict[str, str]:
    same = {f"{ldm}.{part}": f"{diffusers}.{part}" for part in ("norm1", "conv1", "norm2", "conv2")}
    return same | {f"{ldm}.nin_shortcut": f"{diffusers}.conv_shortcut"}


def control_prefixes(blocks: int, layers: int, attention: tuple[bool, ...]) -> dict[str, str]:
    """latent-diffusion prefix -> diffusers prefix, for the ControlNet of such a U-Net."""
    names = unet_prefixes(blocks, layers, attention)
    for i in range(blocks * (layers + 1)):  # conv_in, every layer, every downsampler
        names[f"zero_convs.{i}.0"] = f"controlnet_down_blocks.{i}"
    names["middle_block_out.0"] = "controlnet_mid_block"
    hint = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
    return names | {f"input_hint_block.{2 * i}": f"controlnet_cond_embedding.{name}" for i, name in enumerate(hint)}


def rename(weights: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    """Weights under new names. ValueError for a name that starts with none of the prefixes."""
    by_length = sorted(prefixes, key=len, reverse=True)
    return {_renamed(name, prefixes, by_length): value for name, value in weights.items()}


def _renamed(name: str, prefixes: dict[str, str], by_length: Iterable[str]) -> str:
    for prefix in by_length:
        if name.startswith(prefix + "."):
            return prefixes[prefix] + name[len(prefix) :]
    raise ValueError(f"weight {name!r} has no counterpart in the other naming; the model is of another kind")


def inverse(prefixes: dict[str, str]) -> dict[str, str]:
    return {b: a for a, b in prefixes.items()}


def vae_to_ldm(weights: dict[str, Tensor], blocks: int, layers: int) -> dict[str, Tensor]:
    ldm = rename(weights, inverse(vae_prefixes(blocks, layers)))
    return {k: v[..., None, None] if _is_attention_matrix(k, v, 2) else v for k, v in ldm.items()}


def vae_to_diffusers(weights: dict[str, Tensor], blocks: int, layers: int) -> dict[str, Tensor]:
    flat = {k: v[..., 0, 0] if _is_attention_matrix(k, v, 4) else v for k, v in weights.items()}
    return rename(flat, vae_prefixes(blocks, layers))


def _is_attention_matrix(name: str, value: Tensor, ndim: int) -> bool:
    return ".mid.attn_1." in name and value.ndim == ndim
