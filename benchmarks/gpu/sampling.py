"""ComfyUI's sampling in this process, with every system on the pocket model."""

from typing import Any

import torch

from ..common.pocket_host import VIDRD
from . import machine
from .machine import Failed, Setup, Skipped
from .systems import HARIVO, OTHER_TEXT, PIXELS, TEXT, Systems, decoder, load_host

PSNR = {"fp16": 30.0, "bf16": 18.0}  # dB of decoded frames against fp32
DECODER_PSNR = 40.0
LENGTH = 256  # frames of the long video


def sampling(setup: Setup) -> dict[str, Any]:
    """Every system in fp16 and bf16: no NaN, and decoded frames near those of fp32 on the same device."""
    torch.backends.cudnn.allow_tf32 = False
    reference = load_host("fp32")
    expected = {name: run() for name, run in Systems(reference, setup).runs.items()}
    figures: dict[str, Any] = {}
    limits: dict[str, tuple[str, float]] = {}
    for precision, limit in PSNR.items():
        for name, run in Systems(load_host(precision), setup).runs.items():
            images, exact = reference.decode(run().float()), reference.decode(expected[name])
            figures[f"{name}_{precision}_db"] = machine.psnr(images, exact)
            limits[f"{name}_{precision}_db"] = (">=", limit)
    with torch.inference_mode():
        latents = expected["vidrd"]
        whole = decoder(reference).decode(latents)
        parts = torch.cat(list(decoder(reference).decode_stream(latents.split(3))))
    figures["temporal_decoder_streamed_db"] = machine.psnr(parts, whole)
    limits["temporal_decoder_streamed_db"] = (">=", DECODER_PSNR)
    return machine.check(figures, limits)


def repeat(setup: Setup) -> dict[str, Any]:
    """Run A, B, A with deterministic algorithms: both runs of A are equal to the bit."""
    host = load_host("fp32" if setup.cpu else "fp16")
    systems = Systems(host, setup)
    model = host.motion(HARIVO, frames=systems.frames)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first = systems.moving(HARIVO, model=model)
        other = systems.moving(VIDRD, text=OTHER_TEXT, seed=7)
        again = systems.moving(HARIVO, model=model)
    finally:
        torch.use_deterministic_algorithms(False)
    figures = {
        "largest_difference_of_a_and_a": (first - again).abs().max().item(),
        "largest_difference_of_a_and_b": (first - other).abs().max().item(),
    }
    limits = {"largest_difference_of_a_and_a": ("<=", 0.0), "largest_difference_of_a_and_b": (">=", 0.01)}
    return machine.check(figures, limits)


def interrupt(setup: Setup) -> dict[str, Any]:
    """Cancel in the middle of a run: it ends at once, and the next run is what it was before."""
    from comfy import model_management
    from comfy.patcher_extension import WrappersMP

    host = load_host()
    systems = Systems(host, setup)
    model = host.motion(HARIVO, frames=systems.frames)
    before = systems.moving(HARIVO, model=model)
    calls = []

    def cancel(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        model_management.interrupt_current_processing(True)
        return executor(*args, **kwargs)

    cancelled = model.clone()
    cancelled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", cancel)
    try:
        systems.moving(HARIVO, model=cancelled)
    except model_management.InterruptProcessingException:
        interrupted = True
    else:
        interrupted = False
    finally:
        model_management.interrupt_current_processing(False)
    after = systems.moving(HARIVO, model=model)
    figures = {"calls_after_cancel": len(calls) - 1, "largest_difference": (before - after).abs().max().item()}
    if not interrupted:
        raise Failed("the run was not interrupted", figures)
    return machine.check(figures, {"calls_after_cancel": ("<=", 0), "largest_difference": ("<=", 0.0)})


def compiled(setup: Setup) -> dict[str, Any]:
    """ComfyUI's Torch Compile Model on the patched model; a second clip compiles nothing; a plain model behind it."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.utils import counters

    if setup.cpu and not setup.tiny:
        raise Skipped("compiling for the processor needs a C++ compiler; `--tiny` traces only")
    host = load_host("fp32" if setup.cpu else "fp16")
    systems = Systems(host, setup)
    plain, eager = systems.plain(), host.motion(HARIVO, frames=systems.frames)
    expected = [systems.moving(HARIVO, model=eager, seed=seed) for seed in (0, 1)]
    model, results = eager.clone(), []
    torch.compiler.reset()
    graphs = [counters["stats"]["unique_graphs"]]
    set_torch_compile_wrapper(model, backend="eager" if setup.cpu else "inductor")
    try:
        for seed in (0, 1):
            results.append(systems.moving(HARIVO, model=model, seed=seed))
            graphs.append(counters["stats"]["unique_graphs"])
    finally:
        torch.compiler.reset()
    db = [machine.psnr(host.decode(a.float()), host.decode(b.float())) for a, b in zip(results, expected, strict=True)]
    behind = systems.plain()
    figures = {
        "db": min(db),
        "graphs": graphs[1] - graphs[0],
        "graphs_of_the_second_clip": graphs[2] - graphs[1],
        "plain_model_behind": (plain - behind).abs().max().item(),
    }
    limits = {"db": (">=", 30.0), "graphs_of_the_second_clip": ("<=", 0), "plain_model_behind": ("<=", 0.0)}
    return machine.check(figures, limits)


def long_video(setup: Setup) -> dict[str, Any]:
    """The engine of Long Video over 256 frames: the peak memory of clip 16 is that of clip 2. No file is written."""
    from ...model_patches.comfy_host.video.long import LongVideo, make_guider
    from ...model_patches.vidrd.reuse import Config

    frames, overlap, clips, steps = (4, 2, 4, 2) if setup.tiny else (16, 0, 16, 8)
    if not setup.tiny:
        overlap = 4
        clips = 1 + -(-(LENGTH - frames) // (frames - overlap))
    host = load_host("fp32" if setup.cpu else "fp16")
    guider = make_guider(host.motion(VIDRD, frames=frames), host.condition([TEXT]), host.condition([""]), 7.5)
    settings: dict[str, Any] = {"sampler": "euler", "scheduler": "normal", "steps": steps, "seed": 0, "frames": frames}
    video = LongVideo(guider, decoder(host), size=(PIXELS, PIXELS), config=Config(overlap=overlap), **settings)
    state, peaks = None, []
    for clip in range(clips):
        usage: dict[str, Any] = {}
        with machine.peak(setup, usage, "gb"):
            latents, state = video.sample(clip, 0, state, lambda _share: None)
            for _ in video.decode(latents):
                pass
        peaks.append(usage.get("gb", 0.0))
    last = min(16, clips) - 1
    growth = 0.0 if setup.cpu else peaks[last] / peaks[1] - 1
    figures = {
        "frames": frames + (clips - 1) * (frames - overlap),
        "peak_gb_of_clip_2": peaks[1],
        f"peak_gb_of_clip_{last + 1}": peaks[last],
        "growth": growth,
    }
    return machine.check(figures, {"growth": ("<=", 0.01)})
