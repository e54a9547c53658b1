"""Settings that make ablations small."""

from functools import partial

import pytest

from stillmotion.training.metrics import judging


@pytest.fixture(autouse=True)
def small_reference(monkeypatch):
    """A Frechet distance to 50 real clips, not to a thousand."""
    monkeypatch.setattr(judging, "reference", partial(judging.reference, count=50))
