"""The drift of a video from its first frame: closed forms for synthetic videos."""

import pytest
import torch

from stillmotion.evaluation.judges.judge import Judge
from stillmotion.evaluation.metrics import drift


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return Judge().eval()


def test_a_video_at_rest_does_not_drift(judge):
    frame = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scores = drift.track(judge, frame.expand(4, -1, -1, -1))
    assert scores["colour_drift"] == [0.0] * 4
    assert max(scores["class_drift"]) < 1e-6


def test_colour_drift_is_the_change_of_mean_and_deviation():
    frame = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) / 2
    brighter, flatter = frame + 0.1, frame.mean((1, 2), keepdim=True).expand(-1, 64, 64)
    scores = drift.colour_drift(torch.stack([frame, brighter, flatter, frame.flip(1, 2)]))
    deviation = frame.flatten(1).std(1, correction=0).square().mean().sqrt()
    expected = [0.0, 0.1 / 2**0.5, deviation.item() / 2**0.5, 0.0]  # half of the six numbers change
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-6, rtol=1e-4)


def test_class_drift_is_1_when_the_judge_is_sure_of_something_else(judge):
    class Sure(Judge):
        """Judges the class by the brightness of an image."""

        def forward(self, images):
            number = (images.mean((1, 2, 3)) * 4).long()
            logits = {name: 100 * torch.eye(6)[number] for name in ("colour", "shape", "background")}
            return type(judge(images))(logits, images[:, :1])

    frames = torch.tensor([0.1, 0.2, 0.9]).view(3, 1, 1, 1).expand(-1, 3, 64, 64)
    scores = drift.class_drift(Sure(), frames)
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.0, 1.0]))
    assert 0 < drift.class_drift(judge, frames)[2] < 1
