"""I3D is the network of the paper: published names load, its logits are those of a published implementation."""

import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from stillmotion.evaluation.networks.i3d import I3D, SIZE, VideoFeatures, pixels, same_padding
from stillmotion.evaluation.networks.loading import MetricError, sha256


def waves(state):
    """Weights from a formula, so that another implementation can use the same."""
    weights = {}
    for i, (name, value) in enumerate(sorted(state.items())):
        n = torch.arange(value.numel(), dtype=torch.float64)
        wave = torch.sin(n * (1.7 + 0.013 * i) + n * n * 0.00017 + i).float().reshape(value.shape)
        if name.endswith("running_var"):
            wave = 1 + 0.5 * wave
        elif name.endswith("bn.weight"):
            wave = 1 + 0.2 * wave
        else:
            wave = wave * (math.sqrt(4 / value[0].numel()) if value.ndim == 5 else 0.1)
        if not name.endswith("num_batches_tracked"):
            weights[name] = wave
    return weights


def clip(frames=10, height=48, width=64):
    """Frames (f, 3, h, w) of moving waves, in bytes."""
    t, c = torch.arange(frames).view(-1, 1, 1, 1), torch.arange(3).view(1, -1, 1, 1)
    y, x = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    return (127.5 + 127 * torch.sin(0.9 * t + 1.3 * c + 0.21 * y * (1 + 0.1 * t) + 0.17 * x)).round().byte()


@pytest.fixture(scope="module")
def state_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(waves(I3D().state_dict()), path)
    return path


def test_names_shapes_and_count_are_those_of_the_published_file(root):
    with torch.device("meta"):
        state = I3D().state_dict()
    golden = json.loads((root / "tests/golden/i3d.json").read_text(encoding="utf-8"))
    shapes = {name: list(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert shapes == golden["shapes"]
    assert sum(math.prod(s) for n, s in shapes.items() if "running" not in n) == 12_697_264


@pytest.mark.slow
def test_its_logits_are_those_of_a_published_implementation(root, state_file):
    """cd-fvd 0.1.1's class was given the same weights and clip; its first 40 logits are in tests/golden."""
    golden = torch.tensor(json.loads((root / "tests/golden/i3d.json").read_text(encoding="utf-8"))["logits"])
    features = VideoFeatures(state_file)
    assert features.protocol == "videogpt"
    torch.testing.assert_close(features([clip()])[0, :40], golden, rtol=1e-3, atol=1e-3)
    assert (features.file.sha256, features.file.layout) == (sha256(state_file), "state dict")


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (3, 1), (2, 2), (1, 1)])
def test_same_padding_fits_as_many_windows_as_there_are_strides(size, kernel, stride):
    x = torch.ones(1, 1, size, size, size)
    padded = same_padding(x, (kernel,) * 3, (stride,) * 3)
    windows = (padded.shape[-1] - kernel) // stride + 1
    assert windows == math.ceil(size / stride)
    assert padded.sum() == x.sum()
    before = padded[0, 0].sum((0, 1)).nonzero()[0].item()
    assert padded.shape[-1] - size - 2 * before in (0, 1)


def test_frames_come_to_the_network_as_each_protocol_says():
    frames = clip(10, 56, 112)
    cut, stretched = pixels(frames, "videogpt"), pixels(frames, "styleganv")
    assert cut.shape == stretched.shape == (3, 10, SIZE, SIZE)
    assert cut.min() >= -1
    assert cut.max() <= 1
    middle = F.interpolate(frames[..., 28:84].float() / 127.5 - 1, size=(SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(cut[..., 8:-8], middle.transpose(0, 1)[..., 8:-8])
    squeezed = frames[0, 0, 30, :].float() / 127.5 - 1
    assert stretched[0, 0, 122, 0].item() == pytest.approx(squeezed[0].item(), abs=0.2)
    assert stretched[0, 0, 122, -1].item() == pytest.approx(squeezed[-1].item(), abs=0.2)
    ends = pixels(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8), "videogpt")
    torch.testing.assert_close(ends[0, :, 5, 5], torch.tensor([-1.0, 1.0]))


class Scripted(torch.nn.Module):
    """A network with the interface of i3d_torchscript.pt, which returns a summary of its input."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        y = x.float().flatten(1)
        width, flags = torch.tensor([float(x.shape[4])]), torch.tensor([float(rescale)])
        return torch.stack([y.min(1)[0], y.max(1)[0], width, flags, torch.tensor([float(resize)])], 1)


def scripted(network, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), str(path))
    return path


def test_the_torchscript_file_is_given_bytes_or_ready_pixels(tmp_path):
    path = scripted(Scripted(), tmp_path / "i3d_torchscript.pt")
    network = VideoFeatures(path)
    assert (network.protocol, network.file.layout) == ("styleganv", "TorchScript")
    assert network([clip()]).tolist() == [[0.0, 254.0, 64.0, 1.0, 1.0]]
    low, high, *rest = VideoFeatures(path, "videogpt")([clip()])[0].tolist()
    assert rest == [224.0, 0.0, 0.0]
    assert -1 <= low < -0.9
    assert 0.9 < high <= 1


def test_files_that_do_not_do_are_named(tmp_path):
    other = tmp_path / "other.pt"
    torch.save({"layer.weight": torch.zeros(2)}, other)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no weights at all")
    small = tmp_path / "small.pt"
    torch.save(waves(I3D(10).state_dict()), small)
    cases = {
        None: "--i3d is missing; give an I3D of Kinetics-400: i3d_torchscript.pt",
        tmp_path / "none.pt": "there is no such file; give an I3D of Kinetics-400",
        other: "is not the right I3D of Kinetics-400: Conv3d_1a_7x7.conv3d.weight is missing",
        broken: "cannot be read",
        small: r"is not the right I3D of Kinetics-400: logits.conv3d.weight is \(10, 1024",
        scripted(torch.nn.Linear(2, 2), tmp_path / "linear.pt"): "cannot be used as an I3D",
    }
    for path, message in cases.items():
        with pytest.raises(MetricError, match=message) as error:
            VideoFeatures(path)([clip()])
        assert "\n" not in str(error.value)
    with pytest.raises(MetricError, match="--fvd-protocol mine is unknown"):
        VideoFeatures(small, "mine")
