"""A LoRA (arXiv 2106.09685) that teaches the pocket U-Net a style of `sprites`; built with diffusers and peft.

The file has the keys of kohya's scripts, `lora_unet_<module>.lora_down/lora_up/alpha` with diffusers' module names,
which ComfyUI's LoRA nodes and diffusers can both read.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from ...model_patches import checkpoint
from ...model_patches.diffusers_host.pocket import Pocket
from ...model_patches.pocket import SCALE
from ..data import latents
from ..data.latents import Latents
from ..data.sprites import frame_times
from ..data.worlds import SPRITES, World
from ..engine.loop import first_process
from ..plans.run import TrainTable
from .adapters import AdapterTask, base_of, fit_beside
from .text import Vocabulary

log = logging.getLogger(__name__)

SYSTEM = "lora"
SHARD = 250
# attention projections, and the convolutions of the ResNet blocks, since the pocket's outermost level has no attention
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")


class LoraTask(AdapterTask):
    def __init__(
        self, pocket: Pocket, vocabulary: Vocabulary, latents: Latents, seed: int = 0, *, rank: int, alpha: float
    ) -> None:
        super().__init__(pocket, vocabulary, latents, seed)
        self.rank, self.alpha = rank, alpha
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS))  # type: ignore[arg-type]
        self.unet.add_adapter(config)

    def identity(self) -> dict[str, str]:
        return super().identity() | {"lora.rank": str(self.rank), "lora.alpha": str(self.alpha)}

    def eps(self, x_t: Tensor, t: Tensor, context: Tensor, samples: list[int]) -> Tensor:  # noqa: ARG002
        return self.unet(x_t, t, context).sample


def base_weights(unet: nn.Module) -> dict[str, Tensor]:
    """The U-Net's own weights, by the names that they have without peft's wrapper layers."""
    return {k.replace(".base_layer", ""): v for k, v in unet.state_dict().items() if ".lora_" not in k}


def kohya(unet: UNet2DConditionModel, alpha: float) -> dict[str, Tensor]:
    """The LoRA weights of a U-Net under kohya's keys, in half precision."""
    weights: dict[str, Tensor] = {}
    for name, value in get_peft_model_state_dict(unet).items():
        module, _, side = name.removesuffix(".weight").rpartition(".lora_")
        key = "lora_unet_" + module.replace(".", "_")
        weights[f"{key}.lora_{'down' if side == 'A' else 'up'}.weight"] = value.detach().half().contiguous()
        weights[f"{key}.alpha"] = torch.tensor(float(alpha))
    return weights


def shards(out: Path, table: dict[str, Any]) -> Path:
    """The folder with the latents of a run; there is one for each style."""
    return out / f"latents_{table['style']}"


def encode(out: Path, table: dict[str, Any], pocket: Path | None, world: World = SPRITES) -> None:
    """Encode the clips in the LoRA's style into shards below `out`; shards that exist already are kept."""
    vae = base_of(pocket).vae
    times = frame_times(table["frames"])
    for first in range(0, table["clips"], SHARD):
        path, count = shards(out, table) / f"clips-{first:06d}.safetensors", min(SHARD, table["clips"] - first)
        if not path.exists():
            options = {"times": times, "seed": 0, "scale": SCALE, "style": table["style"], "world": world}
            latents.encode(vae, path, first=first, count=count, **options)


def train(
    out: Path,
    recipe: dict[str, dict[str, Any]],
    tokenizer: Path,
    *,
    pocket: Path | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Train with a recipe on the latents that `encode` wrote, and write `out/pocket_<style>.safetensors`.

    An interrupted training resumes (`allow`: see engine.loop.fit).
    """
    table, run = recipe["lora"], TrainTable(out=out, **recipe["train"])
    base = base_of(pocket)
    data = latents.read(shards(out, table), base.vae)
    sizes = {"rank": table["rank"], "alpha": table["alpha"]}
    task = LoraTask(base, Vocabulary(tokenizer), data, run.seed, **sizes)
    fit_beside(task, run, base_weights, allow)
    path = out / f"pocket_{table['style']}.safetensors"
    if first_process():
        header = {"base": task.base, "step": str(run.steps)}
        weights = kohya(task.unet, table["alpha"])
        config = {"style": table["style"], **sizes}
        checkpoint.save(path, system=SYSTEM, config=config, weights=weights, header=header)
        log.info("wrote %s (%.2f MB); the base is unchanged (%s)", path, path.stat().st_size / 1e6, task.base)
    return path
