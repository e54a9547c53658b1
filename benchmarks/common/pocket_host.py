"""The bundled pocket model in a ComfyUI within this process: the same results as a graph, without a server."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "pocket" / "pocket.safetensors"
MOTION = ROOT / "pocket" / "motion.safetensors"
JUDGE = ROOT / "pocket" / "judge.safetensors"
LORA = ROOT / "pocket" / "loras" / "pocket_glow.safetensors"
CONTROL = ROOT / "pocket" / "control_edges.safetensors"
VIDEO_JUDGE = ROOT / "pocket" / "video_judge.safetensors"
ARTV = ROOT / "pocket" / "artv.safetensors"
VIDRD = ROOT / "pocket" / "vidrd.safetensors"
DECODER = ROOT / "pocket" / "temporal_decoder.safetensors"


def start_comfyui(*, cpu: bool = False) -> None:
    """Make ComfyUI importable, and let it use the CPU where there is no CUDA device or `cpu` is set."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder or not (Path(folder) / "comfy").is_dir():
        raise SystemExit(
            "COMFYUI_DIR is not a ComfyUI folder; set it, or run this command through scripts/dev.py bench"
        )
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = cpu or not torch.cuda.is_available()


def one_by_one(model: Any) -> Any:
    """The MODEL, reporting no free memory, so that ComfyUI's sampler calls it once for each condition."""
    from comfy.model_patcher import ModelPatcher

    class Small(ModelPatcher):
        def get_free_memory(self, device: Any) -> float:  # noqa: ARG002
            return 0

    return Small(model.model, model.load_device, model.offload_device)


class PocketHost:
    """Text to images or clips through ComfyUI's own samplers."""

    def __init__(self, pocket: Path = POCKET) -> None:
        start_comfyui()
        from ...model_patches.comfy_host.pocket import load_pocket

        self.model, self.clip, self.vae = load_pocket(pocket)

    def motion(self, path: Path = MOTION, frames: int = 16, **options):
        """A copy of the model with temporal layers."""
        from ...model_patches.comfy_host.motion.apply import apply_motion
        from ...model_patches.comfy_host.motion.files import load_motion

        return apply_motion(self.model, load_motion(path), frames=frames, **options)

    def lora(self, path: Path = LORA, *, model=None, strength: float = 1.0):
        """A copy of the model (or of `model`) with a LoRA, applied by ComfyUI's loader."""
        import comfy.sd
        from safetensors.torch import load_file

        return comfy.sd.load_lora_for_models(model or self.model, None, load_file(path), strength, 0.0)[0]

    def control(self, hints: Tensor, frames: str = "all", *, path: Path = CONTROL, count: int = 1):
        """A function that does to two conditions what Apply ControlNet and ControlNet Frames (of `count` frames) do.

        hints: (n, 3, h, w).
        """
        from ...model_patches.comfy_host.conditions.control import limit_to_frames, parse_frames
        from ...model_patches.comfy_host.pocket import load_pocket_control

        net = load_pocket_control(path).copy().set_cond_hint(hints)
        options = {"control": net, "control_apply_to_uncond": False}

        def apply(*conditions):
            result = tuple([[context, extras | options] for context, extras in c] for c in conditions)
            return result if frames == "all" else limit_to_frames(result, parse_frames(frames, count), count)

        return apply

    def condition(self, texts: list[str], frames: int = 1):
        """A CONDITIONING with one text per clip, repeated over its frames."""
        rows = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(t))[0] for t in texts]
        context = torch.cat([row[0] for row in rows]).repeat_interleave(frames, 0)
        return [[context, rows[0][1]]]

    @torch.inference_mode()
    def sample(
        self,
        model,
        texts: list[str],
        *,
        frames: int = 1,
        seed: int = 0,
        steps: int = 25,
        cfg: float = 7.5,
        sampler: str = "ddim",
        scheduler: str = "normal",
        control=None,
    ) -> Tensor:
        """Latents (texts * frames, 4, 16, 16); by default DDIM, 25 steps, CFG 7.5. `control`: result of `control()`."""
        import comfy.sample

        empty = torch.zeros(len(texts) * frames, 4, 16, 16)
        noise = comfy.sample.prepare_noise(empty, seed)
        positive, negative = self.condition(texts, frames), self.condition([""], 1)
        if control is not None:
            positive, negative = control(positive, negative)
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, scheduler, positive, negative, empty, disable_pbar=True, seed=seed
        )

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decoded images (n, 3, 64, 64) in 0..1."""
        return self.vae.decode(latents).permute(0, 3, 1, 2).float().cpu()
