"""The images on the cards of the template browser.

ComfyUI only requests `<name of the template>.jpg`. Browsers recognise an image by its content and not by its name, so
the file may contain an animated WebP, which moves on the card.
"""

from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # pixels; the size of a card
MAX_FRAMES = 24
QUALITY, TEXT_QUALITY = 55, 85
BACKGROUND, STRONG, WEAK = "#1b1d22", "#f2f2f2", "#9aa0aa"


def save_moving(video: Path, path: Path) -> None:
    """Write a small version of a video, with evenly spaced frames if the video is long."""
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
        rate = float(container.streams.video[0].average_rate or 8)
    count = min(MAX_FRAMES, len(frames))
    samples = [frames[i * (len(frames) - 1) // max(1, count - 1)] for i in range(count)]
    # the video enlarges the pocket's pixels without smoothing, so the thumbnail does too
    first, *rest = [frame.resize((SIDE, SIDE), Image.Resampling.NEAREST) for frame in samples]
    options = {"quality": QUALITY, "method": 6, "loop": 0, "duration": round(1000 / rate)}
    first.save(path, format="WEBP", save_all=True, append_images=rest, **options)


def save_card(path: Path, *lines: str) -> None:
    """Write a card with text, for templates that need the user's files and have no video. The first line is large."""
    card = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    pen = ImageDraw.Draw(card)
    sizes = [30] + [19] * (len(lines) - 1)
    y = (SIDE - sum(size * 1.5 for size in sizes)) / 2
    for line, size in zip(lines, sizes, strict=True):
        pen.text(
            (SIDE / 2, y), line, fill=STRONG if size > 20 else WEAK, font=ImageFont.load_default(size), anchor="ma"
        )
        y += size * 1.5
    card.save(path, format="JPEG", quality=TEXT_QUALITY)
