"""The inputs of the Autoregressive Video node, and the render that they describe."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ...model_patches.artv.guidance import Weights
from ...model_patches.comfy_host.video.autoregressive import Rollout, Start, encode_start
from ...rendering.job import LATENTS, Job
from .base import Rendering, Request
from .options import ArtvOptions
from .reading import frames_of


@dataclass(frozen=True, kw_only=True)
class RollRequest(Request):
    """The inputs of the node, under their names."""

    folder, unit = "autoregressive_video", "frame"
    settings = ("seed", "text_weight")
    # pictures count by their content, not by the nodes that made them; a story counts by frame, see `Rollout.inputs`
    links = ("model", "artv", "vae", "positive", "negative")
    texts = "story"

    model: Any
    artv: Any
    sampler_name: str = "dpmpp_2s_ancestral"
    text_weight: float = 6.5
    positive: Any = None
    negative: Any = None
    story: Any = None
    image: Any = None
    video: Any = None
    anchor: Any = None
    artv_options: ArtvOptions = field(default_factory=ArtvOptions)

    def rendering(self, size: tuple[int, int]) -> Rendering:
        start, remark = encode_start(
            self.vae,
            size,
            self.artv_options.fit,
            image=self.image,
            video=self.continued(),
            anchor=self.anchor,
        )
        engine, count = self.engine(size, start), self.length()
        engine.check(count)

        def last_frame(job: Job) -> Any:
            return engine.pictures(job.read_tensors(count - 1, LATENTS)["latents"])

        return Rendering(
            engine=engine,
            count=count,
            frames=1,
            pictures=last_frame,
            inputs=lambda _job: engine.inputs,
            remarks=(remark,),
        )

    def length(self) -> int:
        """Number of frames of the video: at least that of the story."""
        frames = self.count(self.frames, 1)
        return frames if self.story is None else max(frames, self.story.story.frames)

    def continued(self) -> Iterator[Any] | None:
        """The frames of the video to continue."""
        if self.video is None:
            return None
        return frames_of(self.video)

    def engine(self, size: tuple[int, int], start: Start) -> Rollout:
        options = self.artv_options
        return Rollout(
            self.model,
            self.artv,
            self.vae,
            positive=self.positive,
            negative=self.negative,
            sampler=self.sampler_name if self.sampler is None else self.sampler,
            scheduler=self.scheduler,
            steps=self.steps,
            sigmas=self.sigmas,
            seed=self.seed,
            size=size,
            weights=Weights(options.reference_weight, options.anchor_weight, self.text_weight),
            level=options.t_test,
            masks=options.masks,
            start=start,
            story=self.story,
        )

    def values(self) -> dict[str, Any]:
        """Without fit, whose effect is part of the picture's content."""
        options = {name: value for name, value in asdict(self.artv_options).items() if name != "fit"}
        return options | {"texts from": "positive" if self.story is None else "a story"}
