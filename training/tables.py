"""The tables of a training's config, one class each; what they belong to and how they are read: `config`.

A field that a paper leaves open says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..model_patches.artv.noise import LEVEL, MAX_LEVEL
from ..model_patches.core.levels import BETA_END, BETA_START
from ..model_patches.dreamvideo.guidance import DEFAULT_SCALE
from ..model_patches.harivo.losses import TAU

BUNDLED, RANDOM = "bundled", "random"
POCKET = Path(__file__).resolve().parents[1] / "pocket"  # the bundled files


@dataclass(frozen=True, kw_only=True)
class BaseTable:
    """The frozen image model."""

    kind: str = "pocket"  # "pocket", "sd15" or "sd21"
    weights: str = BUNDLED  # a .safetensors file, a diffusers folder, "bundled" (pocket), or "random" (to try a shape)
    half: bool = False  # hold the frozen weights in bfloat16; needs train.precision = "bf16"
    checkpointing: bool = False  # forget activations of the U-Net and compute them again: less memory, more time


@dataclass(frozen=True, kw_only=True)
class DataTable:
    latents: str = ""  # folder of cached latents; made by the verb `latents`
    kept: str = ""  # a list of their clips that are taken, made by the verb `select`; none: all
    frames: int = 24  # of a clip
    drop: float = 0.1  # share of empty captions, for classifier-free guidance
    still_weight: int = 1  # times a drawn clip at rest is taken in an epoch; others once. Ours


@dataclass(frozen=True, kw_only=True)
class DecoderDataTable(DataTable):
    """Pictures: what a decoder learns from. It has no captions and no cached latents."""

    frames: int = 8
    videos: str = ""  # a folder of videos; none: drawn clips
    clips: int = 20000  # drawn ones
    size: int = 64  # width and height in pixels
    fps: float = 6.0  # frames a second, of videos


@dataclass(frozen=True, kw_only=True)
class ArtvDataTable(DataTable):
    """Clips of which single frames are learned, each from the two before and an anchor (ART-V, section 3)."""

    frames: int = 16  # of a clip
    drop_references: float = 0.1  # share of the samples without references; independent of the other two
    drop_anchor: float = 0.1
    anchor_window: int = 10  # the anchor is one of so many frames before
    max_level: int = MAX_LEVEL  # references and anchor are noised to a level from 0 to this


@dataclass(frozen=True, kw_only=True)
class DreamVideoDataTable(DataTable):
    """Clips and their first frames, which are the images (DreamVideo, section 4.3)."""

    frames: int = 8
    drop_image: float = 0.1  # share of the samples with a white image; independent of the text's


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """What is trained. Betas and tokens are the paper's; the sizes of the mapping network are not told."""

    mid_block: bool = True
    heads: int = 8
    max_frames: int = 32
    group_norm: str = "per_frame"
    beta_schedule: str = "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    mapping: bool = True
    mapping_width: int = 128
    mapping_heads: int = 8
    tokens: int = 3  # frame-wise tokens a frame, 0: none
    token_layers: int = 2
    token_kernel: int = 1
    start: str = ""  # a motion or HARIVO file to start from, or "bundled" (pocket)


@dataclass(frozen=True, kw_only=True)
class LossTable:
    """Weights of the terms, all RECONSTRUCTED: the paper does not print them. 0 leaves a term out altogether."""

    reg: float = 0.1
    trs: float = 0.1
    dc: float = 0.01
    softening: str = "sqrt_alpha_bar"
    reg_frames: int = 0  # frames of each clip that the image model sees, chosen by sample; 0: all. Ours, to save time
    trs_queries: int = 256  # query pixels of each map, spread evenly; 0: all. Ours, to save memory
    trs_heads: str = "mean"  # "mean" over heads, or "all"
    tau: float = TAU
    queue: int = 1024
    dsm: str = "plain"  # "plain" (the paper's), or "boosted": min-SNR with `boost`, which suits the pocket model. Ours
    boost: float = 1.0
    high_share: float = 0.0  # share of the samples whose timestep is drawn from high_noise on. Ours
    high_noise: int = 600  # timesteps from here on decide layout and motion


@dataclass(frozen=True, kw_only=True)
class LayersTable:
    """VidRD's temporal layers. Their number, dropout and embedding are those of the published code."""

    conv_layers: int = 4
    dropout: float = 0.1
    group_norm: str = "per_clip"  # or "per_frame": ours
    embedding: str = "stream"  # or "branch": ours, a fresh model is then the image model
    beta_schedule: str = "scaled_linear"  # the base's own, which the paper does not change
    beta_start: float = 0.00085
    beta_end: float = 0.012


@dataclass(frozen=True, kw_only=True)
class VidrdModelTable(LayersTable):
    """What of VidRD is trained, beside its temporal layers."""

    spatial: bool = True  # fine-tune the blocks of the spatial transformers, too
    start: str = ""  # a VidRD file to start from


@dataclass(frozen=True, kw_only=True)
class DreamVideoModelTable(LayersTable):
    """What of DreamVideo is trained: its branch, and perhaps the temporal layers of the primary U-Net."""

    motion: bool = True  # the temporal layers learn, too, as in the paper; else they stay those of `start`
    temporal: str = "frozen"  # temporal layers in the branch: "frozen" copies of those at the start, or "none"
    inject: str = "skips"  # or "up_blocks" (`dreamvideo.config.RetentionConfig`)
    image_range: str = "unit"  # or "signed"
    start: str = ""  # a VidRD file (the paper's start), a DreamVideo file, or a motion file, whose layers do not learn
    controlnet: str = ""  # a ControlNet of the base that the branch begins as; none: the U-Net's own blocks


@dataclass(frozen=True, kw_only=True)
class VidrdLossTable:
    """Which noise levels count how much; the paper has none of this."""

    dsm: str = "plain"  # as in LossTable
    boost: float = 1.0
    high_share: float = 0.0
    high_noise: int = 600


@dataclass(frozen=True, kw_only=True)
class ArtvModelTable:
    """What of ART-V is trained, its sizes and the choices that the paper leaves open (`artv.config.ArtvConfig`)."""

    # Noise schedule: that of the base, which the file does not change.
    beta_schedule: ClassVar[str] = "scaled_linear"
    beta_start: ClassVar[float] = BETA_START
    beta_end: ClassVar[float] = BETA_END

    unet: bool = True  # the image U-Net learns, too, as in the paper; it is then a second file
    heads: tuple[int, ...] = ()  # of the anchor blocks; none: those of the U-Net
    mask_channels: tuple[int, ...] = ()  # none: a fifth of the U-Net's, the paper's 64 to 320
    mask_heads: tuple[int, ...] = ()  # none: 32 channels a head
    adapter_blocks: int = 2
    anchor: str = "latent"
    anchor_patch: int = 4
    anchor_positions: bool = True
    anchor_ff: int = 4
    level_embedding: str = "added"
    static: str = "consistent"
    static_reference: str = "clean"
    start: str = ""  # an ART-V file to start from


@dataclass(frozen=True, kw_only=True)
class DecoderModelTable:
    """Temp-Convs of the decoder. Statistics per frame are ours: a stream is then exact."""

    conv_layers: int = 3
    dropout: float = 0.1
    group_norm: str = "per_frame"  # or "per_clip": the published code


@dataclass(frozen=True, kw_only=True)
class DecoderLossTable:
    """Eq. 9. The weights are the paper's; what the terms are is RECONSTRUCTED. L_reg is constant and left out."""

    rec: float = 1.0
    disc: float = 0.5
    flicker: float = 0.0  # weight of mean |d y - d x|, d between a frame and the next. Ours
    perceptual: str = "gradient"  # or "lpips", with weights
    lpips: str = ""  # a TorchScript file that gives LPIPS of two images in -1..1
    disc_start: int = 0  # step at which the discriminator's part begins; latent diffusion takes 50,001
    disc_width: int = 64
    disc_layers: int = 3


@dataclass(frozen=True, kw_only=True)
class SamplesTable:
    """Pictures while training: one row a prompt."""

    every: int = 500  # steps, 0: never
    prompts: tuple[str, ...] = ()
    steps: int = 12
    guidance: float = 7.5
    columns: int = 8  # frames shown


@dataclass(frozen=True, kw_only=True)
class DreamVideoSamplesTable(SamplesTable):
    """Pictures while training: the image, and what is made of it. `guidance` is s_t of Eq. 5."""

    clips: int = 3  # first ones of the data: a row of each, from its first frame and caption; `prompts` have no image
    guidance: float = DEFAULT_SCALE
    image: float = DEFAULT_SCALE  # s_i


@dataclass(frozen=True, kw_only=True)
class ArtvSamplesTable(SamplesTable):
    """Pictures while training: rolls from the prompt alone. `guidance` is 1 + the text's weight in Eq. 8."""

    reference: float = 0.25  # weights of Eq. 8
    anchor: float = 0.25
    level: int = LEVEL  # of the noise on references and anchor
