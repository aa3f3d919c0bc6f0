"""Draws pictures of any size for load tests: smooth noise, which compresses at least as well as photographs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from PIL import Image

if TYPE_CHECKING:
    import random

Size = tuple[int, int]
"""Width and height in pixels."""

BLOTCH_PIXELS: Final = 28
MAX_BLOTCHES: Final = 48
"""A blotch of colour is ``BLOTCH_PIXELS`` wide, or wider if more than ``MAX_BLOTCHES`` would fit from edge to edge."""


def new_picture(rng: random.Random, size: Size) -> bytes:
    """A JPEG of smooth noise. The same state of ``rng`` gives the same bytes, and no two states give the same."""
    width, height = (min(max(2, pixels // BLOTCH_PIXELS), MAX_BLOTCHES) for pixels in size)
    noise = Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))
    file = io.BytesIO()
    noise.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
