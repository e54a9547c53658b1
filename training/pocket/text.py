"""Stage 2: the text encoder, a small CLIP text model that uses the stock CLIP tokenizer.

CLIP's encoder is pretrained before Stable Diffusion uses it. In the same way this encoder is first trained to predict
the caption's attributes at every position from the end-of-text token on (most of the 77 tokens that the U-Net attends
to are there), and is then frozen. Only those rows of the token table are kept that captions use; all other words share
one additional row.
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ...model_patches.diffusers_host.pocket import new_text_encoder
from ...model_patches.pocket import PocketConfig
from ..data.worlds import SPRITES, World
from ..engine.task import Task

TOKENS, END = 77, 49407


def heads_of(world: World) -> dict[str, tuple[str, ...]]:
    """Attribute -> its values; an attribute that the caption omits does not enter the loss."""
    return world.CLASSES | {"second": ("none", *world.CLASSES["colour"])}


class Vocabulary:
    """Maps stock CLIP ids to rows of the compact table. The last row stands for all words that no caption contains."""

    def __init__(self, tokenizer_folder: Path, world: World = SPRITES) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
        ids = {i for w in world.vocabulary() for i in self._ids(w)} | set(self._ids(""))
        self.ids = sorted(ids)
        self.row = {token: row for row, token in enumerate(self.ids)}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"]

    def stock(self, texts: list[str]) -> Tensor:
        """CLIP's ids (n, 77), padded with the end token like Stable Diffusion's tokenizer."""
        return torch.tensor([(ids := self._ids(t)) + [END] * (TOKENS - len(ids)) for t in texts])

    def rows(self, texts: list[str]) -> Tensor:
        """Rows of the compact table, (n, 77)."""
        unknown = len(self.ids)
        return torch.tensor([[self.row.get(i, unknown) for i in ids] for ids in self.stock(texts).tolist()])


class TextTask(Task):
    def __init__(self, vocabulary: Vocabulary, seed: int = 0, world: World = SPRITES) -> None:
        super().__init__()
        self.vocabulary, self.seed, self.world, self.classes = vocabulary, seed, world, heads_of(world)
        config = PocketConfig()
        self.text = new_text_encoder(config, len(vocabulary.ids) + 1)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.context, len(values)) for name, values in self.classes.items()}
        )
        for name, weight in self.text.named_parameters():
            if name.endswith(("token_embedding.weight", "position_embedding.weight")):
                nn.init.normal_(weight, std=0.5 if "token" in name else 0.1)

    def identity(self) -> dict[str, str]:
        return {"data.world": self.world.NAME}

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        rngs = [random.Random(f"text/{self.seed}/{k}") for k in samples]
        wordings = [self.world.wording(self.world.clip(self.seed, k), r) for k, r in zip(samples, rngs, strict=True)]
        captions, attributes = [text for text, _ in wordings], [values for _, values in wordings]
        rows = self.vocabulary.rows([_with_unknown_word(t, r) for t, r in zip(captions, rngs, strict=True)])
        hidden = self.text(rows.to(device)).last_hidden_state
        end = (rows == self.vocabulary.row[END]).int().argmax(1)
        places = torch.tensor(
            [[int(e), 76, *(r.randint(int(e), 76) for _ in range(3))] for e, r in zip(end, rngs, strict=True)]
        )
        states = hidden[torch.arange(len(rows)).unsqueeze(1), places]  # (n, 5, width)
        losses = {}
        for name, head in self.heads.items():
            labels = [self.classes[name].index(a[name]) if name in a else -100 for a in attributes]
            label = torch.tensor(labels, device=device)
            logits = head(states).flatten(0, 1)
            losses[name] = F.cross_entropy(logits, label.repeat_interleave(states.shape[1]), ignore_index=-100)
        return {
            "loss": sum(losses.values(), torch.zeros((), device=device)),
            **{k: v.detach() for k, v in losses.items()},
        }


def _with_unknown_word(caption: str, rng: random.Random) -> str:
    """Insert an unknown word into one caption in five, so that the encoder learns to ignore unknown words."""
    if rng.random() > 0.2:
        return caption
    words = caption.split()
    words.insert(rng.randint(0, len(words)), "zzz")
    return " ".join(words)
