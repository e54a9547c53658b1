"""The table [train] of a config: the length, the optimisation and the output folder of a training."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainTable:
    """Settings of a training. `batch` is the batch of all processes together, whose number does not affect results."""

    out: Path
    steps: int
    batch: int
    lr: float = 1e-3
    lr_end: float = 0.0
    seed: int = 0
    warmup: int = 100
    lr_decay_share: float = 0.4  # last share of the run in which the learning rate falls linearly to lr_end
    weight_decay: float = 0.01
    beta2: float = 0.99  # AdamW's decay rate of the squared gradients
    grad_clip: float = 1.0
    ema: float = 0.999
    precision: str = "no"  # or "bf16", by autocast
    micro: int = 0  # clips that one process computes at once; 0: its whole share of the batch
    save_every: int = 200
    log_every: int = 20
    keep: int = 2  # number of states that are kept
    bad_steps: int = 3  # this many steps in a row without a finite gradient are skipped; one more ends the run
