"""Does an image look like one? Neighbouring pixels of pictures resemble each other; those of random noise do not.

Ranges that were measured on noise or on one colour are not those of real pictures, and INT8 made with them fails on
real pictures without a word. The limit lies between what was tried, the largest correlation of a pixel's luma with
that of the first and the second to its right and below: at most 0.06 for uniform noise and for Gaussian noise of 20
levels, as PNG and as JPEG of quality 95 and 75; 0.94 and more for photographs, 0.7 for the pills' scenes, 0.5 for pages
of small text, 0.3 for a photograph dithered to black and white, 0.2 for one at a fifth of its contrast under noise of
30 levels. Noise that a JPEG has smoothed is let pass (0.4 for 20 levels at quality 50).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.toolkit.images import Uint8Array

Looks = Literal["picture", "noise", "constant"]
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601; a JPEG smooths colours more than this
LEAST_CORRELATION = 0.12
LEAST_DEVIATION = 1.0  # grey levels
LEAST_SIDE_PX = 16  # less is too little to tell noise from a texture
POINTS = 8192  # no grid of them, as that may fall in with a pattern of the image


def looks_like(image: Uint8Array) -> Looks:
    """Judge an [h, w, 3] uint8 image by random points, the same for the same size; below 16 px it is never noise."""
    height, width = image.shape[:2]
    rng = np.random.default_rng(0)
    y, x = rng.integers(0, max(1, height - 2), POINTS), rng.integers(0, max(1, width - 2), POINTS)
    if image[y, x].astype(np.float32).std(axis=0).max() < LEAST_DEVIATION:
        return "constant"
    if min(height, width) < LEAST_SIDE_PX:
        return "picture"
    here = image[y, x] @ LUMA
    neighbours = (image[y, x + 1], image[y, x + 2], image[y + 1, x], image[y + 2, x])
    return "noise" if max(_correlation(here, one @ LUMA) for one in neighbours) < LEAST_CORRELATION else "picture"


def _correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Pearson's, without its sign: a checkerboard is no noise either. One where an array is constant."""
    one, other = one - one.mean(), other - other.mean()
    spread = float(np.sqrt((one * one).mean() * (other * other).mean()))
    return abs(float((one * other).mean())) / spread if spread > 0 else 1.0
