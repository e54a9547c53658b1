"""SparseCtrl in ComfyUI: images on some frames, in batches, in context windows and in the clips of a long video."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.sparsectrl.config import LATENT, PIXELS, SparseConfig
from stillmotion.model_patches.sparsectrl.model import SparseControl

FRAMES, CONTEXT = 8, 32
SIZES: dict[str, Any] = {  # of conftest's tiny_sd
    "block_channels": (32, 64),
    "attention": (False, True),
    "heads": (8, 8),
    "layers_per_block": 1,
    "context_dim": CONTEXT,
    "hint_channels": (16, 32),
    "max_frames": 8,
}


@pytest.fixture
def sparse_file(tmp_path):
    """sparse_file(hint, scale) -> the path of a SparseCtrl file; with scale 0, of an untrained one."""

    def write(hint=LATENT, scale=0.1, **sizes):
        torch.manual_seed(0)
        network = SparseControl(SparseConfig(**SIZES | sizes, hint=hint))
        weights = {
            name.removeprefix("temporal."): weight + (0 if name.endswith(".pe") else scale * torch.randn_like(weight))
            for name, weight in network.state_dict().items()
        }
        path = tmp_path / f"sparse_{hint}_{scale}_{len(sizes)}.safetensors"
        save_file(weights, path)
        return path

    return write


@pytest.fixture
def host(comfy):
    from stillmotion.model_patches.comfy_host.sparsectrl import control

    return control


@pytest.fixture
def video_model(comfy, tiny_sd, weight_file):
    """tiny_sd with a motion model for clips of FRAMES frames."""
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    torch.manual_seed(1)
    motion = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8))
    for parameter in motion.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return apply_motion(tiny_sd, load_motion(weight_file("motion", motion)), frames=FRAMES)


@pytest.fixture
def sample(comfy):
    """sample(model, conditions, frames) -> the latent."""
    from comfy import sample as sampling

    def run(model, conditions, frames=FRAMES, steps=3):
        noise = torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            latent = torch.zeros_like(noise)
            positive, negative = conditions
            arguments = (model, noise, steps, 2.0, "euler", "normal", positive, negative, latent)
            return sampling.sample(*arguments, seed=0, disable_pbar=True)

    return run


def conditioning():
    generator = torch.Generator().manual_seed(3)
    return tuple([[torch.randn(1, 77, CONTEXT, generator=generator), {}]] for _ in range(2))


def images(count=1, height=32, width=32):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("hint", [LATENT, PIXELS])
def test_an_image_changes_the_video_and_an_untrained_network_changes_no_bit(
    host, video_model, sample, sparse_file, tiny_vae, hint
):
    plain = sample(video_model, conditioning())
    for scale in (0.0, 0.1):
        network = host.load_sparse(sparse_file(hint, scale))
        conditions = host.apply_sparse(conditioning(), network, images(), {0: 1.0}, FRAMES, vae=tiny_vae)
        result = sample(video_model, conditions)
        if scale:
            assert ((result - plain).abs().amax((1, 2, 3)) > 1e-3 * plain.abs().max()).all()  # every frame
        else:
            assert torch.equal(result, plain)


def test_strength_0_changes_no_bit(host, video_model, sample, sparse_file, tiny_vae):
    network = host.load_sparse(sparse_file())
    conditions = host.apply_sparse(conditioning(), network, images(), {0: 1.0}, FRAMES, vae=tiny_vae, strength=0.0)
    assert torch.equal(sample(video_model, conditions), sample(video_model, conditioning()))


@pytest.fixture
def recorded_hints(monkeypatch):
    """What the network is given at every call: (hints, mask)."""
    calls = []
    encode = SparseControl.encode
    monkeypatch.setattr(SparseControl, "encode", lambda self, *rows: (calls.append(rows), encode(self, *rows))[1])
    return calls


def test_hints_are_the_scaled_latents_of_the_images_on_their_frames(
    host, video_model, sample, sparse_file, tiny_vae, recorded_hints
):
    network, pictures = host.load_sparse(sparse_file()), images(2, 64, 64)
    places = {0: 1.0, 5: 0.5}
    sample(video_model, host.apply_sparse(conditioning(), network, pictures, places, FRAMES, vae=tiny_vae))
    latents = video_model.model.process_latent_in(tiny_vae.encode(pictures))
    for hints, mask in recorded_hints:
        torch.testing.assert_close(hints[[0, 5]], latents)
        assert not hints[[1, 2, 3, 4, 6, 7]].any()
        assert mask.amax((1, 2, 3)).tolist() == [1.0, 0, 0, 0, 0, 0.5, 0, 0]
        assert mask.shape == (FRAMES, 1, 8, 8)


def test_pixels_are_fitted_to_the_size_of_the_video(host, video_model, sample, sparse_file, recorded_hints):
    network = host.load_sparse(sparse_file(PIXELS))
    wide = images(1, 16, 48)
    sample(video_model, host.apply_sparse(conditioning(), network, wide, {3: 1.0}, FRAMES))
    hints, mask = recorded_hints[0]
    assert torch.equal(hints[3], wide[0, :, 16:32].movedim(-1, 0))
    assert mask.shape == (FRAMES, 1, 16, 16)


def test_one_image_can_be_on_all_frames(host, video_model, sample, sparse_file, recorded_hints):
    network, picture = host.load_sparse(sparse_file(PIXELS)), images(1, 16, 16)
    sample(video_model, host.apply_sparse(conditioning(), network, picture, dict.fromkeys(range(FRAMES), 1.0), FRAMES))
    assert all(torch.equal(row, picture[0].movedim(-1, 0)) for row in recorded_hints[0][0])


def test_images_are_encoded_once_in_a_run(host, video_model, sample, sparse_file, tiny_vae, monkeypatch):
    counts = []
    encode = tiny_vae.encode
    monkeypatch.setattr(tiny_vae, "encode", lambda pictures: (counts.append(1), encode(pictures))[1])
    conditions = host.apply_sparse(
        conditioning(), host.load_sparse(sparse_file()), images(), {0: 1.0}, FRAMES, vae=tiny_vae
    )
    sample(video_model, conditions)
    assert len(counts) == 1
    sample(video_model, conditions)
    assert len(counts) == 2  # nothing is kept from run to run


def test_two_clips_in_one_batch_get_the_same_images(host, video_model, sample, sparse_file, recorded_hints):
    network = host.load_sparse(sparse_file(PIXELS))
    conditions = host.apply_sparse(conditioning(), network, images(), {0: 1.0}, FRAMES)
    result = sample(video_model, conditions, frames=2 * FRAMES)
    assert {len(hints) for hints, _ in recorded_hints} == {FRAMES}
    assert result.shape[0] == 2 * FRAMES


def test_context_windows_get_the_images_of_their_frames(
    host, comfy, tiny_sd, sample, sparse_file, windowed, weight_file, recorded_hints, tiny_vae, monkeypatch
):
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    torch.manual_seed(1)
    motion = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8))
    model = apply_motion(tiny_sd, load_motion(weight_file("motion", motion)), frames=12)
    counts = []
    encode = tiny_vae.encode
    monkeypatch.setattr(tiny_vae, "encode", lambda pictures: (counts.append(1), encode(pictures))[1])
    network = host.load_sparse(sparse_file())
    conditions = host.apply_sparse(conditioning(), network, images(2), {1: 1.0, 10: 1.0}, 12, vae=tiny_vae)
    sample(windowed(model, 4), conditions, frames=12, steps=1)
    masks = {tuple(mask.amax((1, 2, 3)).tolist()) for _, mask in recorded_hints}
    assert (0.0, 1.0, 0.0, 0.0) in masks
    assert any(mask[-2] == 1.0 for mask in masks)
    assert all(len(mask) == 4 for mask in masks)
    assert len(counts) == 1


def test_the_clips_of_a_long_video_get_the_images_of_their_frames(host, comfy, sparse_file):
    from stillmotion.model_patches.comfy_host.conditions.frames import Part

    network = host.load_sparse(sparse_file(PIXELS))
    positive, _ = host.apply_sparse(conditioning(), network, images(2), {1: 1.0, 6: 0.5}, 8)
    condition = {"control": positive[0][1]["control"]}
    tables = [
        Part(first, first + 4).conditions({"positive": [condition]})["positive"][0]["control"].cond_hint_original
        for first in (0, 4)
    ]
    assert [table[:, 0].flatten().tolist() for table in tables] == [[-1, 0, -1, -1], [-1, -1, 1, -1]]
    assert [table[:, 1].flatten().tolist() for table in tables] == [[0, 1, 0, 0], [0, 0, 0.5, 0]]


def test_it_chains_with_a_controlnet_before_it(host, video_model, sample, sparse_file):
    network = host.load_sparse(sparse_file(PIXELS))
    once = host.apply_sparse(conditioning(), network, images(), {0: 1.0}, FRAMES)
    twice = host.apply_sparse(once, network, images(), {7: 1.0}, FRAMES)
    assert twice[0][0][1]["control"] is twice[1][0][1]["control"]
    assert twice[0][0][1]["control"].previous_controlnet is once[0][0][1]["control"]
    first, second = (sample(video_model, conditions) for conditions in (once, twice))
    assert not torch.equal(first, second)


def test_half_precision_files_run(host, video_model, sample, sparse_file, tmp_path):
    from safetensors.torch import load_file

    weights = {name: weight.half() for name, weight in load_file(sparse_file(PIXELS)).items()}
    save_file(weights, tmp_path / "half.safetensors")
    results = [
        sample(video_model, host.apply_sparse(conditioning(), host.load_sparse(path), images(), {0: 1.0}, FRAMES))
        for path in (sparse_file(PIXELS), tmp_path / "half.safetensors")
    ]
    assert (results[0] - results[1]).abs().max() < 0.02 * results[0].abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": images(3)}, "there are 3 images for 1 frames with an image; connect 1 or 1 images"),
        ({"images": torch.full((1, 8, 8, 3), torch.nan)}, "an image contains NaN or infinite values"),
        ({"vae": None}, "sees latents; connect the VAE of the checkpoint"),
        ({"start_percent": 0.6, "end_percent": 0.4}, "start_percent is 0.6 and end_percent is 0.4"),
    ],
)
def test_bad_input_is_named_before_the_sampling(host, sparse_file, tiny_vae, changes, message):
    inputs = {"images": images(), "vae": tiny_vae} | changes
    pictures = inputs.pop("images")
    with pytest.raises(ValueError, match=f"SparseCtrl: .*{message}"):
        host.apply_sparse(conditioning(), host.load_sparse(sparse_file()), pictures, {0: 1.0}, FRAMES, **inputs)


def test_another_number_of_frames_and_another_base_are_named(host, video_model, sample, sparse_file):
    network = host.load_sparse(sparse_file(PIXELS))
    conditions = host.apply_sparse(conditioning(), network, images(), {0: 1.0}, 4)
    with pytest.raises(
        ValueError, match="was set up for 4 frames, but a clip has 8; set frames of Apply SparseCtrl to 8"
    ):
        sample(video_model, conditions)
    other = host.load_sparse(sparse_file(PIXELS, context_dim=24))
    conditions = host.apply_sparse(conditioning(), other, images(), {0: 1.0}, FRAMES)
    with pytest.raises(ValueError, match="SparseCtrl: it was built for a U-Net with text width 24"):
        sample(video_model, conditions)


def test_the_nodes_load_and_apply_a_file_of_their_list(host, comfy, sparse_file, tmp_path, monkeypatch):
    import folder_paths

    from stillmotion.nodes import sparse

    path = sparse_file(PIXELS)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "controlnet", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("controlnet", None)
    names: Any = sparse.LoadSparseCtrl.define_schema().inputs[0]
    assert path.name in names.options
    outputs: Any = sparse.LoadSparseCtrl.execute(path.name).result
    network, info = outputs
    assert info == "SparseCtrl for scribbles or edges, up to 8 frames, float32"
    inputs: dict[str, Any] = {"strength": 0.5, "start_percent": 0.0, "end_percent": 1.0, "fit": "pad"}
    inputs |= dict(zip(("positive", "negative"), conditioning(), strict=True))
    result: Any = sparse.ApplySparseCtrl.execute(
        sparsectrl=network, images=images(2), frames_with_image="0, -1=0.5", frames=FRAMES, **inputs
    ).result
    control = result[0][0][1]["control"]
    assert control.strength == 0.5
    assert control.cond_hint_original[:, 1].flatten().tolist() == [1, 0, 0, 0, 0, 0, 0, 0.5]
    with pytest.raises(ValueError, match="SparseCtrl: '9' is not a frame of a clip of 8"):
        sparse.ApplySparseCtrl.execute(
            sparsectrl=network, images=images(), frames_with_image="9", frames=FRAMES, **inputs
        )
    folder_paths.filename_list_cache.pop("controlnet", None)
