"""Which errors are sentences of ours: the rule of the training command."""

from collections.abc import Callable
from typing import TypeVar

from ...training.failures import sentence

T = TypeVar("T")


class Named(Exception):
    """An error that is a sentence of ours."""


def named(work: Callable[[], T]) -> T:
    """The value of `work`; Named for an error that is one of ours, any other error as it is."""
    try:
        return work()
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        raise Named(text) from error
