"""A motion model, or a whole HARIVO or VidRD model, on a ComfyUI MODEL, using only ModelPatcher's public setters.

The weights are an additional model with its own ModelPatcher, so that ComfyUI loads, offloads and casts them like any
other model. The modules run in handlers that ComfyUI calls in place of the spatial layers. The handlers are stateless
functions: they get everything from `transformer_options`, which is filled through the patcher that is sampling. Clones,
other devices and the copies that ComfyUI makes for LoRA hooks therefore use their own weights.

Shapes: the U-Net's batch is (chunks * clips * f, c, h, w): ComfyUI concatenates the conditions, and each has all clips.
"""

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...core.config import MotionConfig
from ...core.levels import BETA_END, BETA_START, SCHEDULES
from ...core.norms import norms_over_clips
from ...vidrd.config import VidrdConfig
from ..base.betas import Betas, set_betas
from ..base.unet import check_base, image_norms, run_transformer
from ..base.windows import for_windows, frames_of_window
from . import spatial as vidrd
from .call import RUN, Active, Call, Run, Use, frames_of_call
from .clips import check_run, rows_of_condition
from .files import LoadedMotion, hold, load_motion, longest_clip, temporal
from .harivo import check_parts
from .levels import with_trained_levels
from .lora import parts

__all__ = [
    "BETA_SCHEDULES",
    "FROM_FILE",
    "KEY",
    "LoadedMotion",
    "Use",
    "apply_motion",
    "frames_of_call",
    "hold",
    "load_motion",
]

log = logging.getLogger(__name__)

KEY = "stillmotion.motion"
ADDED = "stillmotion.added"  # a list of {slot: residual to add}, for one call of the MODEL
FROM_FILE, OF_MODEL = "from file", "model"
BETA_SCHEDULES = (FROM_FILE, OF_MODEL, *SCHEDULES)
ModelPatcher = comfy.model_patcher.ModelPatcher


def apply_motion(
    model: ModelPatcher,
    motion: LoadedMotion,
    *,
    frames: int,
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    beta_schedule: str = FROM_FILE,
    mapping: float = 1.0,
    tokens: float = 1.0,
    spatial: float = 1.0,
) -> ModelPatcher:
    """A clone of `model` in which every `frames` images of a batch are one clip: z <- z + strength * update(z).

    start_percent, end_percent: the part of sampling in which the motion model is active, as for ComfyUI's conditions.
    beta_schedule: "from file", "model" (keep the base model's), or a schedule of `core.levels` with the file's ends.
    mapping, tokens: strengths of a HARIVO model's other parts, 0 = off; `strength` is that of its temporal layers.
    spatial: strength of the fine-tuned blocks of a VidRD model, from the base model (0) to the file (1).
    A second motion model on the same MODEL adds to the first. ValueError when the base model does not fit.
    """
    if frames < 1:
        raise ValueError(f"motion model: frames is {frames}; give the number of frames of one clip, 2 or more")
    _check_base(model, motion)
    patched = model.clone()
    if frames == 1:
        log.warning("motion model: a clip of 1 frame has no motion; the model is not changed")
        return patched
    _warn_of_competitors(model)
    betas = _betas(motion.config, beta_schedule)
    patchers = list(patched.get_additional_models_with_key(KEY))
    for part in parts(motion, start_percent, end_percent, tuple(patchers)):
        use = Use(frames, strength, part.start, part.end, mapping, tokens, betas, to_the_end=part.last)
        part.patcher.set_attachments(KEY, use)
        patchers.append(part.patcher)
    if motion.spatial and spatial:
        vidrd.add_spatial(patched, motion, spatial)
    patched.set_additional_models(KEY, patchers)
    _add_handlers(patched)
    if betas is not None:
        _set_betas(patched, betas)
    return patched


def with_handlers(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` that adds the residuals that our ControlNet stores in `ADDED`; otherwise unchanged."""
    patched = model.clone()
    _warn_of_competitors(model)
    _add_handlers(patched)
    return patched


def has_handlers(model: ModelPatcher) -> bool:
    """Whether `model` has our handlers, from a motion model or from `with_handlers`."""
    return bool(model.get_wrappers(WrappersMP.APPLY_MODEL, KEY))


def _add_handlers(patched: ModelPatcher) -> None:
    for kind, wrapper in WRAPPERS.items():
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    for entry in HANDLERS:
        if entry not in _handlers(patched):
            patched.set_model_forward_timestep_embed_patch(entry)


def _check_base(model: ModelPatcher, motion: LoadedMotion) -> None:
    if isinstance(motion.config, VidrdConfig):
        vidrd.check_base(model, motion.config)
        return
    check_base(model, motion.config)
    if motion.harivo is not None:
        check_parts(model, motion.harivo)


def _betas(config: MotionConfig | VidrdConfig, beta_schedule: str) -> Betas | None:
    """Those of the training, or of the selected schedule."""
    name = config.beta_schedule if beta_schedule == FROM_FILE else beta_schedule
    if name in (None, OF_MODEL):
        return None
    return Betas(name, config.beta_start or BETA_START, config.beta_end or BETA_END)


def _set_betas(model: ModelPatcher, betas: Betas) -> None:
    if not set_betas(model, betas):
        raise ValueError(
            f"motion model: its noise schedule {betas.schedule!r} cannot replace the "
            f"{type(model.get_model_object('model_sampling')).__name__} of this MODEL, whose noise levels do not come "
            f"from betas; set beta_schedule to {OF_MODEL!r}"
        )


def _handlers(model: ModelPatcher) -> list[tuple[type, Callable]]:
    return model.model_options["transformer_options"].get("patches", {}).get("forward_timestep_embed_patch", [])


def _warn_of_competitors(model: ModelPatcher) -> None:
    """ComfyUI only calls the first handler of a layer, so an earlier handler prevents ours from running."""
    for kind, handler in _handlers(model):
        if (kind, handler) not in HANDLERS and issubclass(ResBlock, kind) | issubclass(SpatialTransformer, kind):
            log.warning(
                "motion model: %s.%s already handles the %s layers of this MODEL; the motion model may not run with it",
                getattr(handler, "__module__", "another pack"),
                getattr(handler, "__qualname__", handler),
                kind.__name__,
            )


def _motions(model: ModelPatcher) -> list[tuple[Any, Use]]:
    patchers: list[Any] = model.get_additional_models_with_key(KEY)
    return [(patcher.model, patcher.get_attachment(KEY)) for patcher in patchers]


def _outer_sample(
    executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Wrap a whole run: check the batch before models are loaded, and afterwards that all modules were called."""
    guider = executor.class_obj
    motions = _motions(guider.model_patcher)
    for motion, use in motions:
        check_run(noise.shape[0], use.frames, longest_clip(motion), guider.model_options)
    run = Run({slot for motion, _ in motions for slot in temporal(motion).modules_by_slot()}, noise.shape[0])
    # the guider's options are a copy for this run
    guider.model_options["transformer_options"][RUN] = run
    if guider.model_options.get("context_handler") is not None:
        guider.conds = for_windows(guider.conds, noise.shape[0])  # so are its conditions
    model, trained = guider.model_patcher, [use.betas for _, use in motions if use.betas is not None]
    guider.model_patcher, sigmas = with_trained_levels(model, trained[-1] if trained else None, sigmas)
    try:
        result = executor(noise, latent, sampler, sigmas, *args, **kwargs)
    finally:
        guider.model_patcher = model
    missing = sorted(run.expected - run.visited)
    if missing and len(sigmas) > 1:
        raise RuntimeError(
            f"motion model: {len(missing)} of its {len(run.expected)} modules were never run (first: {missing[0]}), so "
            "the result would be still images. Another patch on this MODEL handles the same layers or replaces the "
            "U-Net; remove that patch, or the motion model"
        )
    return result


def _apply_model(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Wrap one call of the MODEL: store the motion models of the sampling patcher in the options."""
    base = executor.class_obj
    options = dict(transformer_options or {})  # a copy, since the caller's may be a default argument
    motions = [] if base.current_patcher is None else _motions(base.current_patcher)
    level, run = options.get("sigmas", t), options.get(RUN)
    rows = rows_of_condition(len(x), options, c_crossattn) if motions else len(x)
    call = options[KEY] = Call(
        [
            Active(
                motion,
                temporal(motion).modules_by_slot(),
                use,
                use.active(base.model_sampling, level),
                frames_of_call(use.frames, rows, options, longest_clip(motion)),
            )
            for motion, use in motions
        ],
        run,
    )
    result = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    if run is not None:
        run.visited.update(call.visited)
    return result


def _diffusion_model(
    executor: Any,
    x: Tensor,
    timesteps: Any = None,
    context: Any = None,
    y: Any = None,
    control: Any = None,
    transformer_options: Any = None,
    **kwargs: Any,
) -> Tensor:
    """Wrap one call of the U-Net: store the layers of this instance, and apply HARIVO to its inputs."""
    call = (transformer_options or {}).get(KEY)
    if call is not None:
        x, context = call.enter(x, context, transformer_options)
        call.find(executor.class_obj)
        if call.needs("attended"):
            transformer_options = transformer_options | {
                "patches": _with_own_patches(transformer_options.get("patches", {}))
            }
        if (frames := call.norm_frames()) > 1:
            with norms_over_clips(image_norms(executor.class_obj), frames):
                return executor(x, timesteps, context, y, control, transformer_options, **kwargs)
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def _with_own_patches(patches: dict[str, list]) -> dict[str, list]:
    """Add our patches after those of other nodes, so that ours get the final features."""
    return patches | {name: [*patches.get(name, []), patch] for name, patch in INSIDE.items()}


def _after(layer: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor:
    """Apply the motion modules after a layer."""
    call: Call | None = options.get(KEY)
    if call is None:
        return x
    for slot in call.slots.get(id(layer), ()):
        if slot.place != "attended":
            x = call.change(slot, x, options)
            x = sum((added[slot] for added in options.get(ADDED, ()) if slot in added), start=x)
    return x


def _resblock(layer: ResBlock, x: Tensor, emb: Tensor, _context: Any, options: dict[str, Any], *_: Any) -> Tensor:
    return _after(layer, layer(x, emb), options)


def _transformer(
    layer: SpatialTransformer, x: Tensor, _emb: Tensor, context: Any, options: dict[str, Any], *_: Any
) -> Tensor:
    call: Call | None = options.get(KEY)
    if call is not None:
        call.inside = next((slot for slot in call.slots.get(id(layer), ()) if slot.place == "attended"), None)
    x = run_transformer(layer, x, context, options)
    if call is not None:
        call.inside = call.residual = None
    return _after(layer, x, options)


def _before_cross_attention(x: Tensor, options: dict[str, Any]) -> Tensor:
    call: Call = options[KEY]
    call.residual = x
    return x


def _behind_cross_attention(n: Tensor, options: dict[str, Any]) -> Tensor:
    """n is the output of cross-attention: the feed-forward gets x + n."""
    call: Call = options[KEY]
    return n if call.inside is None else call.change(call.inside, n, options, call.residual)


INSIDE = {"middle_patch": _before_cross_attention, "attn2_output_patch": _behind_cross_attention}
WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.CALC_COND_BATCH: frames_of_window,
    WrappersMP.APPLY_MODEL: _apply_model,
    WrappersMP.DIFFUSION_MODEL: _diffusion_model,
}
HANDLERS = ((ResBlock, _resblock), (SpatialTransformer, _transformer))
