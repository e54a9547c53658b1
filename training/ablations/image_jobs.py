"""Sampling of clips that start with an image, on the pocket model, for the rows of DreamVideo's ablation.

Shapes: f frames; images (1, 3, 64, 64) in 0..1.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...evaluation.judges.video_judge import FRAMES
from ...model_patches import checkpoint
from ...model_patches.assembly import retention_branch
from ...model_patches.diffusers_host import dreamvideo
from ...model_patches.dreamvideo.config import DreamVideoConfig
from ...model_patches.dreamvideo.guidance import DEFAULT_SCALE
from ...model_patches.pocket import SCALE
from ...model_patches.systems import DREAMVIDEO
from ..data import sprites
from ..data.latents import encode_frames
from ..sampling.ddim import descend, timesteps
from ..sampling.image_guided import Scales, guided_eps
from .jobs import Job, PocketModel, fingerprint, noise_of

log = logging.getLogger(__name__)

OPPOSITE = {"right": "left", "left": "right", "up": "down", "down": "up"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a clip is sampled from a prompt and its first frame."""

    text: float = DEFAULT_SCALE  # s_t of Eq. 5
    image: float = DEFAULT_SCALE  # s_i
    caption: bool = True  # False: the empty prompt (image to video)
    shown: bool = True  # False: a white image (text to video)
    branch: bool = True  # False: the same model without the branch and without an image
    # Share of the steps that are sampled, starting from the noised image in every frame: below 1, image to image; 1, as
    # much of the image remains as of a training clip in its x_T, see ADR 12. None: start from noise alone.
    noised: float | None = None

    @property
    def scales(self) -> Scales:
        """The scales that avoid predictions which would cancel: an image alone needs no s_t, text alone no s_i."""
        if not self.branch or not self.shown:
            return Scales(text=self.text, image=0.0)
        return Scales(text=self.text if self.caption else 1.0, image=self.image)


class PocketRetention(PocketModel):
    """The pocket model with a DreamVideo file, and with the motion model of that file or of another file."""

    def __init__(self, path: Path, motion: Path | None, tokenizer: Path) -> None:
        super().__init__(motion or path, tokenizer)
        file = checkpoint.load(path, expect=DREAMVIDEO)
        branch = retention_branch(DreamVideoConfig.from_dict(file.config)).eval().requires_grad_(False)
        prefix = "branch."
        weights = {k.removeprefix(prefix): v.float() for k, v in file.weights.items() if k.startswith(prefix)}
        branch.load_state_dict(weights)
        moving: Any = self.handle
        self.retention = dreamvideo.attach(self.base.unet, branch, moving)

    @torch.no_grad()
    def draw_from_image(self, prompt: sprites.Clip, image: Tensor, noise: Tensor, row: Row, *, steps: int) -> Tensor:
        """Sample the latents (1, f, 4, h, w) of a clip."""
        self.retention.strength = float(row.branch)
        condition = image if row.shown and row.branch else torch.ones_like(image)
        context = self.context(sprites.caption(prompt)) if row.caption else self.empty

        def eps(x_t: Tensor, t: int) -> Tensor:
            return guided_eps(self.retention.predict, x_t, t, context, self.empty, condition, row.scales)

        skip, x = 0, noise
        if row.noised is not None:
            skip = round((1 - row.noised) * steps)
            level = self.levels[timesteps(len(self.levels), steps)[skip]]
            still = encode_frames(self.base.vae, image * 2 - 1, SCALE).float().expand(noise.shape[1:])
            x = level.sqrt() * still[None] + (1 - level).sqrt() * noise
        return descend(eps, x, self.levels, steps=steps, skip=skip)


pocket_retention = lru_cache(maxsize=1)(PocketRetention)


@dataclass(frozen=True, kw_only=True)
class ImageJob(Job):
    """A clip of each prompt and its first frame for each row: clips (rows, prompts, f, 3, 64, 64).

    With `length`, also a video of that many stages for each prompt, sampled like the row `staged`: stages (prompts,
    length f, 3, 64, 64).
    """

    rows: Sequence[Row]
    staged: Row
    length: int  # 0: no stages
    motion: Path | None

    def settings(self) -> list[object]:
        motion = [fingerprint(self.motion)] if self.motion else []
        rows = [asdict(row) for row in (*self.rows, self.staged)]
        return [self.length, rows, *motion, *super().settings()]

    def tensors(self) -> dict[str, Tensor]:
        model = pocket_retention(self.model, self.motion, self.tokenizer)
        prompts = list(enumerate(self.prompts(), self.first))
        tensors = {}
        if self.rows:
            tensors["clips"] = torch.stack(list(self._rows(model, prompts)))
        if self.length:
            tensors["stages"] = torch.stack([self._stages(model, prompt, number) for number, prompt in prompts])
        return tensors

    def _rows(self, model: PocketRetention, prompts: Sequence[tuple[int, sprites.Clip]]) -> Iterator[Tensor]:
        for k, row in enumerate(self.rows, 1):
            yield torch.cat([self._clip(model, prompt, number, row) for number, prompt in prompts])
            log.info("%s: %d of %d rows", self.file.name, k, len(self.rows))

    def _clip(
        self,
        model: PocketRetention,
        prompt: sprites.Clip,
        number: int,
        row: Row,
        image: Tensor | None = None,
        stage: int = 0,
    ) -> Tensor:
        """Sample one clip, (1, f, 3, 64, 64) bytes. image: None means the rendered first frame of the prompt."""
        first, noise = first_frame(prompt) if image is None else image, noise_of(self.seed, number, stage)
        return model.pictures(model.draw_from_image(prompt, first, noise, row, steps=self.steps))

    def _stages(self, model: PocketRetention, prompt: sprites.Clip, number: int) -> Tensor:
        clips, image = [], None
        for stage in range(self.length):
            clips.append(self._clip(model, stage_prompt(prompt, stage), number, self.staged, image, stage)[0])
            image = clips[-1][-1:].float() / 255
        return torch.cat(clips)


def first_frame(prompt: sprites.Clip) -> Tensor:
    """The rendered first frame of the clip that a prompt describes, (1, 3, 64, 64)."""
    return sprites.render(prompt, sprites.frame_times(FRAMES)[:1])


def stage_prompt(prompt: sprites.Clip, stage: int) -> sprites.Clip:
    """The prompt of a stage: the motion reverses in every stage, so that the sprite stays inside the image."""
    return replace(prompt, motion=OPPOSITE.get(prompt.motion, prompt.motion)) if stage % 2 else prompt
