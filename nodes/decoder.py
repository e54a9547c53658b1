"""StillMotion/decoding: a VAE whose decoder sees neighbouring frames."""

# pyright: reportIncompatibleMethodOverride=false
# a V3 node names its inputs as the arguments of execute, whose base takes any keyword

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..model_patches.comfy_host.vidrd.decoder import TemporalVAE, load_decoder
from .common import files
from .common.sockets import CATEGORY

FOLDERS = (files.OWN, "vae")
BUNDLED = {"pocket/temporal_decoder.safetensors": files.POCKET / "temporal_decoder.safetensors"}

files.add_folder(files.OWN)


def decoder_path(name: str) -> Path:
    """The path of a listed file. ValueError, with the folders that were searched, when it no longer exists."""
    return files.path_of(name, FOLDERS, BUNDLED, "temporal decoder")


class TemporalDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="StillMotion_TemporalDecoder",
            display_name="Temporal Decoder",
            category=f"{CATEGORY}/decoding",
            description="VidRD's temporal-aware decoder: the VAE sees the neighbours of each frame when it decodes "
            "it, so that fine detail flickers less. Long videos are decoded a few frames at a time.",
            search_aliases=["VidRD", "VAE decode video", "temporal VAE", "flicker"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that the temporal decoder was trained on."),
                io.Combo.Input(
                    "decoder_name",
                    options=files.names(FOLDERS, BUNDLED),
                    tooltip="A file in models/stillmotion or models/vae with VidRD's decoder layers, or the bundled "
                    "one for the pocket Stable Diffusion.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Number of frames of one clip; clips are decoded independently. 0: the whole batch is one "
                    "clip; a file that needs clips of a fixed length gets clips of that length.",
                ),
            ],
            outputs=[
                io.Vae.Output(
                    tooltip="The VAE with the temporal decoder; connect it to VAE Decode. Encoding is unchanged."
                ),
                io.String.Output("info", tooltip="Kind of the file and its sizes, as text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, decoder_name: str | None = None) -> bool | str:
        return files.validated(decoder_path, decoder_name)

    @classmethod
    def fingerprint_inputs(cls, decoder_name: str, **_: object) -> tuple[int, int]:
        return files.fingerprint(decoder_path(decoder_name))

    @classmethod
    def execute(cls, vae, decoder_name: str, frames: int = 0) -> io.NodeOutput:
        decoder = load_decoder(decoder_path(decoder_name))
        return io.NodeOutput(TemporalVAE(vae, decoder, frames), decoder.info)


NODES = [TemporalDecoder]
