"""The training stages of the pocket model in their order, each in its own subfolder of the run:

    vae -> text -> judge -> video_judge -> latents -> unet -> export

A stage writes `weights.safetensors` (the averaged weights) when it is complete. An interrupted stage resumes, and a
complete stage is skipped.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...evaluation.judges.judge import Judge, load_judge, save_judge
from ...evaluation.judges.video_judge import VideoJudge, load_video_judge, save_video_judge
from ...model_patches import checkpoint
from ...model_patches.diffusers_host.pocket import load_pocket, new_text_encoder, new_vae
from ...model_patches.files import write_tensors
from ...model_patches.pocket import CLIP_VOCABULARY, SCALE, SYSTEM, PocketConfig, compact
from ..data import latents
from ..data.sprites import frame_times
from ..data.worlds import world_of
from ..engine.loop import first_process, fit
from ..engine.task import Task
from ..plans.errors import ConfigError
from ..plans.run import TrainTable
from .judge import JudgeTask, new_judge
from .text import TextTask, Vocabulary
from .unet import UnetTask
from .vae import VaeTask, normalise_latents
from .video_judge import VideoJudgeTask, held_out_accuracy, sizes_of

log = logging.getLogger(__name__)

CROPS = ("crop", "anywhere")  # keys of [vae] that say what the autoencoder sees


class Stages:
    """A run folder and its recipe. `start`: a folder like the bundled one, whose U-Net the stage `unet` starts from."""

    def __init__(
        self, out: Path, recipe: dict[str, dict[str, Any]], tokenizer: Path, *, start: Path | None = None
    ) -> None:
        self.out, self.recipe, self.tokenizer, self.start = out, recipe, tokenizer, start
        self.config = PocketConfig()
        self.world = world_of(recipe)

    def run(self, name: str) -> None:
        stages: dict[str, Callable[[], None]] = {
            "vae": self.vae,
            "text": self.text,
            "judge": self.judge,
            "video_judge": self.video_judge,
            "latents": self.latents,
            "unet": self.unet,
            "export": self.export,
        }
        for stage in stages if name == "all" else [name]:
            if name == "all" and stage != "export" and self.done(stage).exists():
                log.info("stage %s is complete already", stage)
                continue
            log.info("stage %s", stage)
            stages[stage]()

    def adopt(self, folder: Path) -> None:
        """Use autoencoder, text encoder and judges of a folder like the bundled one as the results of their stages."""
        pocket, ids = load_pocket(folder / "pocket.safetensors"), self._vocabulary().ids
        unknown_id = next(i for i in range(CLIP_VOCABULARY) if i not in set(ids))
        text = pocket.text.state_dict()
        table_name = next(name for name in text if name.endswith("token_embedding.weight"))
        text[table_name] = text[table_name][[*ids, unknown_id]]
        judge = load_judge(folder / "judge.safetensors")
        video_judge, _ = load_video_judge(folder / "video_judge.safetensors")
        if {judge.world, video_judge.world} != {self.world.NAME}:
            raise ConfigError(
                f"the judges in {folder} are of the world {judge.world!r}, but data.world is {self.world.NAME!r}; "
                "use a recipe for the same world"
            )
        networks = {
            "vae": pocket.vae.state_dict(),
            "text": text,
            "judge": judge.state_dict(),
            "video_judge": video_judge.state_dict(),
        }
        for stage, weights in networks.items():
            write_tensors(weights, self.done(stage))

    def done(self, stage: str) -> Path:
        return self.out / stage / ("done" if stage == "latents" else "weights.safetensors")

    def vae(self) -> None:
        def finish(task: nn.Module) -> None:
            assert isinstance(task, VaeTask)
            normalise_latents(task.vae, torch.stack([self._picture(k) for k in range(512)]))

        crops = {name: self.recipe["vae"][name] for name in CROPS if name in self.recipe["vae"]}
        self._train("vae", VaeTask(world=self.world, **crops), "vae.", finish)

    def text(self) -> None:
        self._train("text", TextTask(self._vocabulary(), world=self.world), "text.")

    def judge(self) -> None:
        self._train("judge", JudgeTask(world=self.world), "judge.")

    def video_judge(self) -> None:
        self._train("video_judge", VideoJudgeTask(world=self.world), "judge.")

    def latents(self) -> None:
        """Encode the shards, divided among the processes; a shard file appears only when it is complete."""
        table, vae = self.recipe["latents"], self.trained_vae()
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        for number, first in enumerate(range(0, table["clips"], table["shard"])):
            path = self.out / "latents" / f"clips-{first:06d}.safetensors"
            if number % world == rank and not path.exists():
                count = min(table["shard"], table["clips"] - first)
                options = {"times": frame_times(table["frames"]), "seed": 0, "scale": SCALE, "world": self.world}
                latents.encode(vae, path, first=first, count=count, **options)
        if world == 1:
            self.done("latents").touch()

    def unet(self) -> None:
        text, vocabulary = self.trained_text()
        task = UnetTask(text, vocabulary, latents.read(self.out / "latents", self.trained_vae()))
        if self.start:
            task.unet.load_state_dict(load_pocket(self.start / "pocket.safetensors").unet.state_dict())
        self._train("unet", task, "unet.")

    def export(self) -> None:
        """Write the files that the stages produce into `pocket/` below the run folder."""
        target = self.out / "pocket"
        target.mkdir(exist_ok=True)
        text, vocabulary = self.trained_text()
        unet = load_file(self.done("unet"))
        weights = compact(self.config, unet, self.trained_vae().state_dict(), text.state_dict(), vocabulary.ids)
        header = {"preview": json.dumps(self._preview()), "step": str(self.recipe["unet"]["steps"])}
        header["world"] = self.world.NAME
        path = target / "pocket.safetensors"
        checkpoint.save(path, system=SYSTEM, config=self.config.to_dict(), weights=weights, header=header)
        judge = new_judge(self.world)
        judge.load_state_dict(load_file(self.done("judge")))
        save_judge(judge, target / "judge.safetensors")
        video_judge = VideoJudge(sizes_of(self.world), self.world.NAME).eval()
        video_judge.load_state_dict(load_file(self._require("video_judge")))
        save_video_judge(video_judge, target / "video_judge.safetensors", held_out_accuracy(video_judge))
        log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)

    def trained_vae(self):
        vae = new_vae(self.config)
        vae.load_state_dict(load_file(self._require("vae")))
        return vae.eval().requires_grad_(False)

    def trained_text(self):
        vocabulary = self._vocabulary()
        text = new_text_encoder(self.config, len(vocabulary.ids) + 1)
        text.load_state_dict(load_file(self._require("text")))
        return text.eval().requires_grad_(False), vocabulary

    def trained_judge(self) -> Judge:
        judge = new_judge(self.world)
        judge.load_state_dict(load_file(self._require("judge")))
        return judge.eval()

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.world)

    def _picture(self, k: int) -> Tensor:
        """A frame in -1..1 of a clip that no stage is trained on."""
        return self.world.render(self.world.clip(88_000, k), [k % 16 / 15])[0] * 2 - 1

    def _require(self, stage: str) -> Path:
        path = self.done(stage)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing; train this stage first: python -m stillmotion.training pocket {stage}"
            )
        return path

    def _train(self, stage: str, task: Task, part: str, finish: Callable[[nn.Module], None] | None = None) -> None:
        settings = {name: value for name, value in self.recipe[stage].items() if name not in CROPS}
        average = fit(task, TrainTable(out=self.out / stage, **settings))
        task.load_state_dict(average, strict=False)
        task.to("cpu").eval()
        if finish:
            finish(task)
        if first_process():
            part_weights = {k.removeprefix(part): v for k, v in task.state_dict().items() if k.startswith(part)}
            # rounded like the exported file, so that later stages use exactly the networks that users get
            weights = {k: v.half().float() if v.is_floating_point() else v for k, v in part_weights.items()}
            write_tensors(weights, self.done(stage))

    @torch.no_grad()
    def _preview(self) -> dict[str, Any]:
        """Least-squares fit of colours to latents, for ComfyUI's previews: rgb = z @ factors + bias, in -1..1."""
        vae = self.trained_vae()
        pictures = torch.stack([self._picture(k) for k in range(128)])
        z = vae.encode(pictures, return_dict=False)[0].mean * SCALE
        small = torch.nn.functional.avg_pool2d(pictures, self.config.downscale)
        rows = z.permute(0, 2, 3, 1).flatten(0, 2)
        ones = torch.ones(len(rows), 1)
        fit_ = torch.linalg.lstsq(torch.cat([rows, ones], 1), small.permute(0, 2, 3, 1).flatten(0, 2)).solution
        return {"factors": fit_[:-1].tolist(), "bias": fit_[-1].tolist()}
