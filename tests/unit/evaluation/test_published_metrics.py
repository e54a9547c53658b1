"""FVD's distance, the Inception Score and SSIM equal the published ones of torchmetrics (whose import is slow)."""

import pytest
import torch

from stillmotion.evaluation.metrics.first_frame import first_frame_ssim
from stillmotion.evaluation.metrics.video_metrics import distance
from stillmotion.evaluation.networks.inception import inception_score

pytestmark = pytest.mark.slow
torchmetrics = "the published implementation is torchmetrics, which is not installed"


@pytest.fixture
def samples():
    torch.manual_seed(0)
    return torch.randn(300, 12, dtype=torch.float64), 0.5 + 1.5 * torch.randn(200, 12, dtype=torch.float64)


def test_the_distance_is_that_of_torchmetrics(samples):
    fid = pytest.importorskip("torchmetrics.image.fid", reason=torchmetrics)

    class Rows(torch.nn.Identity):
        num_features = 12

    published = fid.FrechetInceptionDistance(feature=Rows()).set_dtype(torch.float64)
    generated, real = samples
    published.update(real, real=True)
    published.update(generated, real=False)
    estimate = distance(generated, real, 5)
    assert estimate.value == pytest.approx(published.compute().item(), rel=1e-6)
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.filterwarnings("ignore:std")  # of its single split
def test_the_inception_score_is_that_of_torchmetrics():
    inception = pytest.importorskip("torchmetrics.image.inception", reason=torchmetrics)
    torch.manual_seed(0)
    logits = 2 * torch.randn(64, 9)
    with pytest.warns(UserWarning, match="all extracted features"):
        published = inception.InceptionScore(feature=torch.nn.Identity(), splits=1)
    published.update(logits)
    assert inception_score(logits.softmax(1), 1) == pytest.approx(published.compute()[0].item(), rel=1e-5)


def test_ssim_is_that_of_torchmetrics():
    ssim = pytest.importorskip("torchmetrics.functional.image", reason=torchmetrics)
    torch.manual_seed(0)
    x = torch.rand(3, 3, 32, 41)
    y = (x + 0.2 * torch.randn_like(x)).clamp(0, 1)
    published = ssim.structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
    torch.testing.assert_close(first_frame_ssim(x, y), published, rtol=1e-4, atol=1e-5)
