"""The graphs for SD1.5 and an AnimateDiff file, on a real ComfyUI server, with random weights of the real sizes.

Both model files are written into a temporary folder (3 GB). Then each graph makes a small video: 64 x 64 pixels, four
frames per clip, two steps. Keys: `videos`, the number of graphs that made a video; `frames`, the frames of all videos;
`seconds_NAME`, from the queue to the file, including loading; `memory_gb`, the server's peak memory. Needs 12 GB.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import av
import torch
from torch import Tensor

from ...evaluation.scores.report import ROOT
from ...model_patches.core.config import MotionConfig
from ...model_patches.core.temporal import MotionModel
from ...model_patches.files import write_tensors
from ...model_patches.ldm_names import inverse, rename, unet_prefixes, vae_to_ldm
from ...model_patches.pocket import TEXT, UNET, VAE
from ..common.report import finish
from ..reliability.bench_kill import start
from .bench_temporal import ATTENTION, CHANNELS, CONTEXT, HEADS, random_weight
from .sd21 import weight_shapes

sys.path.insert(0, str(ROOT / "scripts"))

from devkit import workflow
from devkit.client import Client

GRAPHS = [name for name in workflow.names() if name.endswith("_sd15")]
SMALL = {"width": 64, "height": 64, "steps": 2}


def random_weights(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Random weights in half precision."""
    generator = torch.Generator().manual_seed(0)
    return {name: random_weight(name, shape, generator).half() for name, shape in shapes.items()}


def checkpoint() -> dict[str, Tensor]:
    """The weights of an SD1.5 checkpoint file, with latent-diffusion's names."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = random_weights(weight_shapes(UNet2DConditionModel, cross_attention_dim=CONTEXT))
    vae = random_weights(
        weight_shapes(
            AutoencoderKL,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    )
    text = random_weights(
        weight_shapes(CLIPTextModel, CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    )
    weights = {UNET + k: v for k, v in rename(unet, inverse(unet_prefixes(4, 2, ATTENTION))).items()}
    weights |= {VAE + k: v for k, v in vae_to_ldm(vae, 4, 2).items()}
    prefix = "" if any(k.startswith("text_model.") for k in text) else "text_model."
    return weights | {TEXT + prefix + k: v for k, v in text.items()}


def write_files(models: Path) -> None:
    write_tensors(checkpoint(), models / "checkpoints" / "v1-5-pruned-emaonly-fp16.safetensors", {})
    motion = random_weights(
        weight_shapes(MotionModel, MotionConfig(block_channels=CHANNELS, mid_block=True, heads=HEADS))
    )
    (models / "animatediff_models").mkdir(parents=True, exist_ok=True)
    torch.save(motion, models / "animatediff_models" / "mm_sd_v15_v2.ckpt")


def small(name: str, frames: int, clips: int) -> dict:
    prompt = workflow.adapt(workflow.load(name), frames=frames)
    for node in prompt.values():
        inputs = node["inputs"]
        inputs |= {key: value for key, value in SMALL.items() if key in inputs}
        if "clips" in inputs:
            inputs |= {"clips": clips, "overlap": frames // 2}
    return prompt


def frames_of(path: Path) -> int:
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def peak_gb(pid: int) -> float:
    """Sum of the peak resident memory (Linux's VmHWM) of a process and its children, in GB."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # the process has ended in the meantime
            continue
        if str(pid) in (lines["Pid"].strip(), lines["PPid"].strip()) and "VmHWM" in lines:
            total += int(lines["VmHWM"].split()[0]) / 1e6
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=4, help="frames per clip")
    parser.add_argument("--clips", type=int, default=2, help="clips of the long video")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        write_files(base / "models")
        server = start(base)
        try:
            for name in GRAPHS:
                run = Client(server.url).run(small(name, args.frames, args.clips), timeout=3600).check()
                (item,) = run.results()
                frames = frames_of(Client(server.url).fetch(item, base / name / item["filename"]))
                figures[f"seconds_{name}"] = run.seconds
                figures["frames"] = figures.get("frames", 0) + frames
                print(f"{name}: {frames} frames in {run.seconds:.1f} s", flush=True)
            assert server.process is not None
            figures["memory_gb"] = peak_gb(server.process.pid)
        finally:
            server.stop(gentle=False)
    finish("sd15", {"videos": len(GRAPHS), **figures})


if __name__ == "__main__":
    main()
