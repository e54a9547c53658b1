"""All trained parts of DreamVideo (arXiv 2312.03018, section 4.2): the branch and the U-Net's temporal layers."""

from typing import Any

from torch import nn

from .retention import RetentionBranch


class DreamVideoModel(nn.Module):
    """The content of a DreamVideo file, with the keys `branch.` and, if temporal layers were trained, `motion.`."""

    motion: Any  # a VidrdModel or None

    def __init__(self, branch: RetentionBranch, motion: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.motion = branch, motion
