"""The preview during a render: a picture of each of the last clips, and the remaining time."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

MAX_PICTURES, HEIGHT, CAPTION = 6, 96, 16  # pictures; pixels


def format_time(seconds: float) -> str:
    """
    >>> format_time(41.4), format_time(754), format_time(7500)
    ('41 s', '13 min', '2 h 5 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Clock:
    """Estimates the remaining time from the completed share of this run's work. now: time in seconds, any origin."""

    def __init__(self, work: float, now: Callable[[], float] = time.monotonic) -> None:
        self.work, self.now, self.began = work, now, now()

    def seconds_left(self, done: float) -> float | None:
        """Seconds; None before any work is done."""
        return (self.now() - self.began) / done * (self.work - done) if done > 0 else None


class Strip:
    """One picture for each of the last clips, the newest on the right. Only thumbnails are stored."""

    def __init__(self) -> None:
        self.pictures: deque[Image.Image] = deque(maxlen=MAX_PICTURES)

    def add(self, frame: np.ndarray) -> None:
        picture = Image.fromarray(frame)
        self.pictures.append(picture.resize((max(1, round(picture.width * HEIGHT / picture.height)), HEIGHT)))

    def draw(self, caption: str) -> Image.Image | None:
        """The strip with a caption; None if there is no picture yet."""
        if not self.pictures:
            return None
        sheet = Image.new("RGB", (max(sum(p.width for p in self.pictures), 160), HEIGHT + CAPTION))
        x = 0
        for picture in self.pictures:
            sheet.paste(picture, (x, 0))
            x += picture.width
        ImageDraw.Draw(sheet).text((4, HEIGHT + 2), caption, fill=(255, 255, 255))
        return sheet


@dataclass(frozen=True)
class Progress:
    clip: int  # the current one, counted from 1
    clips: int
    share: float  # of the whole video, from 0 to 1
    seconds_left: float | None  # seconds
    strip: Image.Image | None = None
    unit: str = "clip"

    def __str__(self) -> str:
        remaining = "" if self.seconds_left is None else f", {format_time(self.seconds_left)} left"
        return f"{self.unit} {self.clip} of {self.clips}{remaining}"
