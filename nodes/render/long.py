"""The inputs of the Long Video node, and the render that they describe."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...model_patches.comfy_host.video.long import LongVideo, make_guider
from ...rendering.job import LATENTS, Job
from .base import Rendering, Request
from .options import ReuseOptions

GUIDED = "a guider is connected; model, positive, negative and cfg are not used"


@dataclass(frozen=True, kw_only=True)
class LongRequest(Request):
    """The inputs of the node, under their names."""

    folder, unit = "long_video", "clip"
    settings = ("seed", "frames")

    clips: int = 4
    cfg: float = 10.0
    model: Any = None
    positive: Any = None
    negative: Any = None
    prompts: Any = None
    guider: Any = None
    reuse_options: ReuseOptions = field(default_factory=ReuseOptions)
    render_again: Mapping[int, int] = field(default_factory=dict)

    def linked(self) -> tuple[str, ...]:
        return ("vae", "prompts", *(("guider",) if self.guider is not None else ("model", "positive", "negative")))

    def rendering(self, size: tuple[int, int]) -> Rendering:
        count, remarks = self.count(self.clips, self.frames), ()
        engine = self.engine(size)
        engine.check(count)
        if self.guider is not None and self.model is not None:
            remarks = (GUIDED,)

        def first_clip(job: Job) -> Any:
            return engine.pictures(job.read_tensors(0, LATENTS)["latents"])

        return Rendering(
            engine=engine,
            count=count,
            frames=self.frames,
            pictures=first_clip,
            takes=self.render_again,
            remarks=remarks,
        )

    def engine(self, size: tuple[int, int]) -> LongVideo:
        reuse = self.reuse_options
        return LongVideo(
            self.make_guider(),
            self.vae,
            sampler=self.sampler_name if self.sampler is None else self.sampler,
            scheduler=self.scheduler,
            steps=self.steps,
            sigmas=self.sigmas,
            seed=self.seed,
            frames=self.frames,
            size=size,
            config=reuse,
            step_noise=reuse.reuse_step_noise,
            prompts=self.prompts,
        )

    def make_guider(self) -> Any:
        """The connected GUIDER, or CFG as in the KSampler node. ValueError for too few connections."""
        if self.guider is not None:
            return self.guider
        if self.model is None:
            raise ValueError("long video: neither a model nor a guider is connected; connect one of the two")
        if self.positive is None and self.prompts is None:
            raise ValueError("long video: there is no prompt; connect positive, prompts or guider")
        return make_guider(self.model, self.positive, self.negative, self.cfg)

    def values(self) -> dict[str, Any]:
        return asdict(self.reuse_options)
