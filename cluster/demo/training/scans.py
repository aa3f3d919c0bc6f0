"""Pictures of handwritten digits, made from the 1,797 real 8×8 scans in scikit-learn."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from cluster.demo.training.draw import ink_and_paper

if TYPE_CHECKING:
    import random

    from cluster.demo.training.draw import Size

NUM_HELD_OUT: Final = 300
"""How many scans training never sees; a fixed seed chooses them."""

_UPSCALED: Final = 64
_RESAMPLINGS: Final = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@cache
def scans(held_out: bool) -> tuple[tuple[Image.Image, str], ...]:
    """The 8×8 grey scans (ink 255, paper 0) with their digits: those for training, or the held-out ones."""
    bunch = load_digits()
    order = np.random.default_rng(20250).permutation(len(bunch.target))
    chosen = order[:NUM_HELD_OUT] if held_out else order[NUM_HELD_OUT:]
    levels = np.minimum(bunch.images * 16, 255).astype(np.uint8)
    return tuple((Image.fromarray(levels[i]), str(bunch.target[i])) for i in chosen)


def plain(size: Size, rng: random.Random, held_out: bool) -> tuple[Image.Image, dict[str, str]]:
    """A scan that nearly fills the picture, dark on light or light on dark, as a user would send it."""
    scan, digit = rng.choice(scans(held_out))
    ink = scan if held_out or rng.random() < 0.3 else _bent(scan, rng)
    inner = max(8, round(min(size) * rng.choice((1, 1, rng.uniform(0.65, 1)))))
    ink = ink.resize((inner, inner), rng.choice(_RESAMPLINGS))
    sheet = Image.new("L", size)
    sheet.paste(ink, tuple(round((side - inner) * rng.uniform(0.3, 0.7)) for side in size))  # type: ignore[arg-type]
    sheet = ImageOps.invert(sheet) if rng.random() < 0.5 else sheet
    return sheet.convert("RGB"), {"digit": digit}


def written(size: Size, rng: random.Random, held_out: bool, easy: float) -> tuple[Image.Image, dict[str, str]]:
    """A scan in random ink, at a random position, on paper of a random colour."""
    scan, digit = rng.choice(scans(held_out))
    ink, paper = ink_and_paper(rng, easy)
    side = max(8, round(min(size) * rng.uniform(0.75, 1.0)))
    mark = (scan if held_out and rng.random() < 0.5 else _bent(scan, rng)).resize(
        (side, side), rng.choice(_RESAMPLINGS[1:])
    )
    mask = Image.new("L", size)
    mask.paste(mark, tuple(rng.randint(0, max(0, whole - side)) for whole in size))  # type: ignore[arg-type]
    return Image.composite(Image.new("RGB", size, ink), Image.new("RGB", size, paper), mask), {"digit": digit}


def _bent(scan: Image.Image, rng: random.Random) -> Image.Image:
    """The scan at 64×64, slightly rotated, slanted, stretched and bent, with thinner or bolder strokes."""
    big = scan.resize((_UPSCALED, _UPSCALED), Image.Resampling.BICUBIC)
    cells = 3
    turn, slant = rng.uniform(-0.17, 0.17), rng.uniform(-0.17, 0.17)
    wide, tall = rng.uniform(0.85, 1.25), rng.uniform(0.85, 1.2)
    nodes = {}
    for row in range(cells + 1):
        for column in range(cells + 1):
            x, y = 2 * column / cells - 1, 2 * row / cells - 1
            x, y = wide * (x + slant * y), tall * y
            x, y = x - turn * y + rng.uniform(-0.07, 0.07), y + turn * x + rng.uniform(-0.07, 0.07)
            nodes[row, column] = ((x + 1) / 2 * _UPSCALED, (y + 1) / 2 * _UPSCALED)
    step = _UPSCALED / cells
    mesh = [
        (
            (round(c * step), round(r * step), round((c + 1) * step), round((r + 1) * step)),
            (*nodes[r, c], *nodes[r + 1, c], *nodes[r + 1, c + 1], *nodes[r, c + 1]),
        )
        for r in range(cells)
        for c in range(cells)
    ]
    bent = big.transform(big.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    gamma = rng.uniform(0.7, 1.4)
    return bent.point([round(255 * (level / 255) ** gamma) for level in range(256)])
