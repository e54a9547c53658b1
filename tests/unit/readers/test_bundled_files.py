"""The bundled weight files carry the digest of what is in them."""

from pathlib import Path

import pytest

from stillmotion.model_patches import checkpoint, pocket, systems
from stillmotion.model_patches.layouts import CheckpointError

FOLDER = Path(__file__).resolve().parents[3] / "pocket"
KINDS = (*(systems.MOTION, systems.HARIVO, systems.VIDRD, systems.VIDRD_DECODER, systems.ARTV, systems.DREAMVIDEO),)
KINDS += (pocket.SYSTEM, pocket.CONTROL_SYSTEM)
FILES = ("artv", "control_edges", "dreamvideo", "harivo", "motion", "pocket", "temporal_decoder", "vidrd")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_a_bundled_file_is_named(tmp_path, name):
    content = bytearray((FOLDER / f"{name}.safetensors").read_bytes())
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)
    assert checkpoint.load(path, expect=KINDS).header[checkpoint.DIGEST]
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is damaged: its weights or its config"):
        checkpoint.load(path, expect=KINDS)
