"""ART-V on a ComfyUI MODEL: one frame from the two previous frames and an anchor, with every sampler and guider.

The weights are an additional model with its own ModelPatcher, so that ComfyUI loads, offloads and casts them. The
augmentation level enters in the embedding patch and the adapter's features in the input block patch, before a block's
output is stored as a skip; the anchor blocks run in a handler that ComfyUI calls in place of a spatial transformer. The
mask network runs after the U-Net and blends its prediction of the clean latent, so a MODEL may predict eps or v. Either
each prediction is blended, or the guider does it with one mask for all conditions (`blended`).

Patches and wrappers are stateless functions. They get everything from `transformer_options`, which is filled through
the patcher that is sampling; values computed once per frame are stored in the run and discarded with it.

Shapes: the U-Net's batch is (chunks * n, c, h, w): ComfyUI concatenates the conditions, n images each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...artv.conditions import Conditions, conditions
from ...artv.model import ArtvModel
from ...artv.noise import level_shift
from ...artv.places import sites, stages
from ...core.levels import alpha_bars
from ...core.slots import Slot
from ..base.unet import layers_by_slot, run_transformer
from ..motion import apply as motion
from .checks import FrameInputs, blend, check_areas, check_base, check_inputs, check_latent
from .files import LoadedArtv, load_artv

__all__ = ["ANCHOR", "KEY", "REFERENCE", "FrameInputs", "LoadedArtv", "apply_artv", "blended", "load_artv"]

KEY, RUN = "stillmotion.artv", "stillmotion.artv.run"
REFERENCE, ANCHOR = "reference", "anchor"
ALPHA_BARS = alpha_bars()  # for the augmentation, as in training, independent of the MODEL's schedule
ModelPatcher = comfy.model_patcher.ModelPatcher
Kind = tuple[bool, bool]  # without references, without anchor
Features = tuple[list[Tensor], list[Tensor]]  # from the adapters of the dynamic and the mask network
Trace = Callable[[float, int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Use:
    """How one MODEL uses an ART-V model."""

    inputs: FrameInputs
    left_out: tuple[frozenset[str], ...]
    mask: bool
    trace: Trace | None
    cache: bool
    each: bool

    def kind(self, condition: int) -> Kind:
        """What a condition of the sampler's call does without."""
        if condition >= len(self.left_out):
            raise ValueError(
                f"ART-V: the guider uses condition {condition}, but left_out has {len(self.left_out)} entries; give "
                "one entry for each of the guider's conditions"
            )
        out = self.left_out[condition]
        return REFERENCE in out or self.inputs.references is None, ANCHOR in out or self.inputs.anchor is None


@dataclass
class Run:
    """One sampling run: the expected and the visited parts, and values that are computed once for the frame."""

    expected: set[tuple[str, Slot]] = field(default_factory=set)
    visited: set[tuple[str, Slot]] = field(default_factory=set)
    features: dict[tuple, Features] = field(default_factory=dict)
    """Features of the adapters for one row, with and without references."""
    batches: dict[tuple, tuple[Conditions, Features]] = field(default_factory=dict)
    """Conditions and features of all rows, by the kinds of the rows."""
    masks: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """m and the previous frame, for the MODEL calls of a guider that are not blended yet."""
    form: str = "consistent"


@dataclass
class Call:
    """One call of the MODEL."""

    model: ArtvModel
    use: Use
    run: Run
    chunks: Sequence[int]
    """The condition of each chunk of the batch."""
    x: Tensor
    dtype: torch.dtype
    conditions: Conditions = field(init=False)
    """Conditions of every row of the batch."""
    features: Features = field(init=False)
    """Features of every row of the batch."""
    unet: Any = None
    t: Any = None
    sites: dict[int, Slot] = field(default_factory=dict)
    """id of a spatial transformer -> its slot."""
    ends: dict[int, tuple[Slot, int]] = field(default_factory=dict)
    """Number of an input block -> the last layer of a down block, and that block's number."""
    reached: list[tuple[str, Slot]] = field(default_factory=list)
    """Parts that ran; for the run after the call, because torch.compile loses changes of what lives longer."""

    def __post_init__(self) -> None:
        rows = self.x.shape[0] // len(self.chunks)
        kinds = tuple(self.use.kind(condition) for condition in self.chunks for _ in range(rows))
        key = (id(self.model), self.x.device, self.dtype, kinds)
        if key not in self.run.batches:
            conds = self._conditions(kinds)
            row_features = [self._features(conds, row, *kind) for row, kind in enumerate(kinds)]
            dynamic, mask = (
                [torch.cat(stage) for stage in zip(*rows, strict=True)] for rows in zip(*row_features, strict=True)
            )
            self.run.batches[key] = (conds, (dynamic, mask))
        self.conditions, self.features = self.run.batches[key]

    def _conditions(self, kinds: Sequence[Kind]) -> Conditions:
        inputs, n, device = self.use.inputs, len(kinds), self.x.device
        # arbitrary values if they are left out
        references = inputs.noise[:2] if inputs.references is None else inputs.references
        anchor = inputs.noise[2] if inputs.anchor is None else inputs.anchor
        if inputs.anchor is None and self.model.config.anchor == "clip":
            anchor = inputs.noise.new_zeros(1, self.model.config.token_width)

        def rows(values: Tensor) -> Tensor:
            return values.to(device, torch.float32).expand(n, *values.shape)

        without = torch.tensor(kinds, device=device)
        return conditions(
            self.model.config,
            rows(references),
            rows(anchor),
            rows(inputs.noise),
            torch.full((n,), inputs.level, device=device),
            ALPHA_BARS,
            no_references=without[:, 0],
            no_anchor=without[:, 1],
        )

    def _features(self, conds: Conditions, row: int, no_references: bool, _no_anchor: bool) -> Features:
        """Features of one row, computed once per run, whatever its batches are."""
        key = (id(self.model), self.x.device, self.dtype, no_references)
        if key not in self.run.features:
            latents = conds.references[row : row + 1].to(self.dtype)
            self.run.features[key] = (self.model.reference(latents), self.model.mask.reference(latents))
        return self.run.features[key]

    def find(self, unet: Any) -> None:
        """Store the layers of this U-Net instance."""
        self.unet = unet
        layers = layers_by_slot(unet)
        self.sites = {id(layers[slot]): slot for slot in sites(self.model.config)}
        last = {id(layers[slot]): (slot, i) for i, slot in enumerate(stages(self.model.config))}
        self.ends = {
            number: last[id(layer)]
            for number, block in enumerate(unet.input_blocks)
            for layer in block
            if id(layer) in last
        }

    def reach(self, part: str, slot: Slot) -> None:
        self.reached.append((part, slot))

    def blended(self, base: Any, context: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """Eq. 7 on the prediction of the clean latent; rows without references are unchanged.

        If the guider blends, return the prediction unchanged and store the mask of the first condition, which leaves
        nothing out.
        """
        indices = [i for i, condition in enumerate(self.chunks) if self.use.each or condition == 0]
        if not indices:
            return x_0
        rows = torch.arange(len(x_0), device=x_0.device).view(len(self.chunks), -1)[indices].flatten()
        blank, y_ref = self.conditions.blank[rows].view(-1, 1, 1, 1), self.conditions.static[rows]
        m = torch.zeros_like(x_0[rows, :1])
        if self.use.mask and not bool(blank.all()):
            m = torch.where(blank, m, self._mask(base, context, t, rows))
        self._report(t, indices, m)
        if not self.use.each:
            self.run.masks += zip(m.chunk(len(indices)), y_ref.chunk(len(indices)), strict=True)
            return x_0
        return blend(x_0, self.x, t, m, y_ref, self.model.config.static)

    def _mask(self, base: Any, context: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        sampling, x, t = base.model_sampling, self.x[rows], t[rows]
        return self.model.mask(
            sampling.calculate_input(t, x).to(self.dtype),
            sampling.timestep(t).float(),
            context[rows].to(x.device, self.dtype),
            [feature[rows] for feature in self.features[1]],
            self.conditions.tokens[rows],
            self.conditions.level[rows],
        )

    def _report(self, t: Tensor, indices: Sequence[int], m: Tensor) -> None:
        if self.use.trace is not None:
            for i, part in zip(indices, m.chunk(len(indices)), strict=True):
                self.use.trace(float(t[0]), self.chunks[i], part.detach().float().cpu())


def blended(options: dict[str, Any], x_0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """For guiders: blend a guided prediction with the previous frame, using one mask for all conditions.

    options: the model options of the guider's call. The prediction is unchanged if each call of the MODEL was blended,
    or if there is no ART-V model.
    """
    run: Run | None = options.get("transformer_options", {}).get(RUN)
    if run is None or not run.masks:
        return x_0
    masks, frames = zip(*run.masks, strict=True)  # several if a condition consists of several
    run.masks.clear()
    return blend(x_0, x, sigma, torch.stack(masks).mean(0), frames[0], run.form)


def apply_artv(
    model: ModelPatcher,
    artv: LoadedArtv,
    inputs: FrameInputs,
    *,
    left_out: Sequence[frozenset[str]] = (frozenset(), frozenset()),
    mask: bool = True,
    trace: Trace | None = None,
    cache: bool = True,
    each: bool = True,
) -> ModelPatcher:
    """A clone of `model` that generates the next frame from `inputs`. It replaces any other ART-V model on it.

    left_out: for each condition of the sampler's call (ComfyUI's cond_or_uncond; for a CFGGuider 0 is positive and 1 is
        negative), which of "reference" and "anchor" it does without.
    mask: False disables the mask network, m = 0.
    cache: False runs the adapters at every call of the MODEL, to measure their cost.
    each: True blends every prediction of the MODEL with its own mask. False leaves it to the guider (`blended`).
    trace: called with (sigma, condition, m) after every call of the MODEL, m (n, 1, h, w) on the CPU.

    ValueError when the base model does not fit, or a shape in `inputs` is wrong or a value is NaN.
    """
    names = frozenset().union(*left_out) - {REFERENCE, ANCHOR}
    if names:
        raise ValueError(
            f"ART-V: left_out names {', '.join(sorted(names))}; only {REFERENCE} and {ANCHOR} can be left out"
        )
    check_base(model, artv.config)
    check_inputs(inputs, artv.config)
    _check_others(model)
    patched = model.clone()
    patcher = artv.patcher.clone()
    patcher.set_attachments(KEY, Use(inputs, tuple(left_out), mask, trace, cache, each))
    patched.set_additional_models(KEY, [patcher])
    for kind, wrapper in WRAPPERS.items():
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    for name, patch in PATCHES.items():
        if patch not in _patches(patched, name):
            patched.set_model_patch(patch, name)
    return patched


def _patches(model: ModelPatcher, name: str) -> list[Any]:
    return model.model_options["transformer_options"].get("patches", {}).get(name, [])


def _check_others(model: ModelPatcher) -> None:
    """ComfyUI only calls the first handler of a layer, so ours would never run after another."""
    if model.get_additional_models_with_key(motion.KEY):
        raise ValueError(
            "ART-V: this MODEL has a motion model on it, which generates whole clips, but ART-V generates one frame at "
            "a time; connect the MODEL from before Apply Motion Model"
        )
    for kind, handler in _patches(model, HANDLER):
        if handler is not _transformer and issubclass(SpatialTransformer, kind):
            raise ValueError(
                f"ART-V: {getattr(handler, '__module__', 'another pack')} already handles the {kind.__name__} layers "
                "of this MODEL, where the anchor blocks run; remove that patch from the MODEL"
            )


def _artv(model: Any) -> tuple[Any, Use] | None:
    for patcher in [] if model is None else model.get_additional_models_with_key(KEY):
        return patcher.model, patcher.get_attachment(KEY)
    return None


def _outer_sample(executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *a: Any, **k: Any) -> Any:
    """Wrap a whole run: check the latent before models are loaded, and afterwards that all parts were called."""
    guider = executor.class_obj
    attachment = _artv(guider.model_patcher)
    if attachment is None:
        return executor(noise, latent, sampler, sigmas, *a, **k)
    model, use = attachment
    check_latent(noise, use.inputs)
    check_areas(guider)
    parts = {("anchor block", slot) for slot in sites(model.config)} | {("adapter", s) for s in stages(model.config)}
    run = Run(parts, form=model.config.static)
    # the guider's options are a copy for this run
    guider.model_options["transformer_options"][RUN] = run
    result = executor(noise, latent, sampler, sigmas, *a, **k)
    missing = sorted(run.expected - run.visited)
    if missing and len(sigmas) > 1:
        raise RuntimeError(
            f"ART-V: {len(missing)} of its {len(run.expected)} parts were never run (first: {missing[0][0]} at "
            f"{missing[0][1]}), so the frame would not continue the previous ones. Another patch on this MODEL handles "
            "the same layers or replaces the U-Net; remove that patch"
        )
    if run.masks:
        raise RuntimeError(
            f"ART-V: {type(guider).__name__} does not blend the previous frame into its prediction; use ArtvGuider, or "
            "apply_artv with each=True"
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
    """Wrap one call of the MODEL: prepare the frame's conditions before it, and apply the mask after it."""
    base = executor.class_obj
    options = dict(transformer_options or {})  # a copy, since the caller's may be a default argument
    attachment = _artv(base.current_patcher)
    if attachment is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    model, use = attachment
    check_latent(x, use.inputs)
    chunks = list(options.get("cond_or_uncond", ())) or [0]
    run = options.get(RUN) or Run()
    if not use.cache:
        run = replace(run, features={}, batches={})
    call = options[KEY] = Call(model, use, run, chunks, x, base.get_dtype_inference())
    x_0 = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    run.visited.update(call.reached)
    return call.blended(base, c_crossattn, t, x_0)


def _diffusion_model(executor: Any, x: Tensor, timesteps: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """Wrap one call of the U-Net: store the layers of this instance."""
    options = args[3] if len(args) > 3 else kwargs.get("transformer_options")
    call: Call | None = (options or {}).get(KEY)
    if call is not None:
        call.t = timesteps
        call.find(executor.class_obj)
    return executor(x, timesteps, *args, **kwargs)


def _embedding(emb: Tensor, channels: int, options: dict[str, Any]) -> Tensor:
    """The embedding of the time step plus that of the augmentation level."""
    call: Call | None = options.get(KEY)
    if call is None:
        return emb
    form = call.model.config.level_embedding
    shift = level_shift(lambda pe: call.unet.time_embed(pe.to(emb)), channels, call.t, call.conditions.level, form)
    return emb if shift is None else emb + shift


def _input_block(h: Tensor, options: dict[str, Any]) -> Tensor:
    """Add the adapter's feature after the last layer of a down block, before the output is stored as a skip."""
    call: Call | None = options.get(KEY)
    end = None if call is None else call.ends.get(options["block"][1])
    if call is None or end is None:
        return h
    slot, stage = end
    call.reach("adapter", slot)
    return h + call.features[0][stage].to(h)


def _transformer(
    layer: SpatialTransformer, x: Tensor, _emb: Tensor, context: Any, options: dict[str, Any], *_: Any
) -> Tensor:
    """A spatial transformer and the anchor block after it."""
    x = run_transformer(layer, x, context, options)
    call: Call | None = options.get(KEY)
    slot = None if call is None else call.sites.get(id(layer))
    if call is None or slot is None:
        return x
    call.reach("anchor block", slot)
    return call.model.anchors.change(slot, x, call.conditions.tokens, options)


HANDLER = "forward_timestep_embed_patch"
PATCHES: dict[str, Any] = {
    "emb_patch": _embedding,
    "input_block_patch": _input_block,
    HANDLER: (SpatialTransformer, _transformer),
}
WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: _outer_sample,
    WrappersMP.APPLY_MODEL: _apply_model,
    WrappersMP.DIFFUSION_MODEL: _diffusion_model,
}
