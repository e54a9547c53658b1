"""The table [train] of a config: how long, how fast and where a training runs."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainTable:
    """How to train. `batch` is the global batch: results do not depend on how many processes share it."""

    out: Path
    steps: int
    batch: int
    lr: float = 1e-3
    lr_end: float = 0.0
    seed: int = 0
    warmup: int = 100
    lr_decay_share: float = 0.4  # last share of the run in which the learning rate falls linearly to lr_end
    weight_decay: float = 0.01
    beta2: float = 0.99  # AdamW's decay of squared gradients
    grad_clip: float = 1.0
    ema: float = 0.999
    precision: str = "no"  # "bf16": autocast
    micro: int = 0  # clips that one process puts through the model at once; 0: all of its share
    save_every: int = 200
    log_every: int = 20
    keep: int = 2  # states kept
    bad_steps: int = 3  # this many steps in a row without a finite gradient are skipped; one more ends the run
