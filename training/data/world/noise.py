"""Randomness for drawing: hashes of cell coordinates, and textures that repeat without a seam.

Both depend only on a seed and on world coordinates, so a picture does not depend on what else is drawn. Shapes:
h height, w width, in texels; an image width has 128 texels.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
TEXELS = 128  # per image width: two for each of 64 pixels
HEIGHT, WIDTH = 512, 1024  # size of a texture, in texels


def dice(seed: int, *cells: NDArray | int) -> Array:
    """Random numbers in [0, 1), each a hash of integer cell coordinates (arrays that broadcast)."""
    h = np.asarray(seed & 0xFFFFFFFF, np.uint32)
    with np.errstate(over="ignore"):
        for cell in cells:
            h = (h ^ np.asarray(cell).astype(np.int64).astype(np.uint32)) * np.uint32(0x9E3779B1)
            h = (h ^ (h >> np.uint32(15))) * np.uint32(0x85EBCA77)
            h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE3D)
            h = h ^ (h >> np.uint32(16))
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


@cache
def texture(kind: str) -> Array:
    """A periodic texture (HEIGHT, WIDTH), mean 0, deviation 1: grain, fine, cloud (coarse) or streak (horizontal)."""
    fy, fx = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    f = np.sqrt((5 * fx if kind == "streak" else fx) ** 2 + fy**2)
    spectra = {
        "grain": np.exp(-((f * 3.5) ** 2)),
        "fine": np.exp(-((f * 11.0) ** 2)),
        "cloud": 1 / (1 + (f * 60) ** 2) ** 1.15,
        "streak": 1 / (1 + (f * 22) ** 2) ** 1.2,
    }
    if kind not in spectra:
        raise ValueError(f"there is no texture {kind!r}; use one of {', '.join(spectra)}")
    white = np.random.default_rng(list(spectra).index(kind)).standard_normal((HEIGHT, WIDTH))
    values = np.fft.irfft2(np.fft.rfft2(white) * spectra[kind], (HEIGHT, WIDTH))
    values = values - values.mean()
    return (values / values.std()).astype(np.float32)


def texture_at(kind: str, x: NDArray, y: NDArray, seed: int) -> Array:
    """The texture at world coordinates in image widths, x (w,) and y (h,): (h, w). Each seed has its own offset."""
    shift = dice(seed, np.arange(2))
    rows = (np.floor(y * TEXELS).astype(np.int64) + int(shift[0] * HEIGHT)) % HEIGHT
    columns = (np.floor(x * TEXELS).astype(np.int64) + int(shift[1] * WIDTH)) % WIDTH
    return texture(kind)[rows[:, None], columns[None]]


def waves(x: NDArray, seed: int, *lengths: float) -> Array:
    """A sum of sines with these wavelengths at world coordinates x; its values lie between about -1 and 1."""
    phases = dice(seed, np.arange(len(lengths)))
    total = sum(lengths)
    parts = (
        length / total * np.sin(2 * np.pi * (x / length + phase)) for length, phase in zip(lengths, phases, strict=True)
    )
    return np.asarray(sum(parts), np.float32)


def step(low: float, high: float, x: NDArray) -> Array:
    """0 below `low`, 1 above `high`, and a smooth step between them."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
