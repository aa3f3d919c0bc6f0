"""Draws short printed words and printed digits in the DejaVu fonts that matplotlib contains."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from cluster.demo.training.classes import DIGITS, WORDS
from cluster.demo.training.draw import ink_and_paper

if TYPE_CHECKING:
    import random

    from cluster.demo.training.draw import Size

_FOLDER: Final = Path(mpl.get_data_path()) / "fonts" / "ttf"
FONTS: Final = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
)


def word(size: Size, rng: random.Random, easy: float) -> tuple[Image.Image, dict[str, str]]:
    """A picture of a word, which fills most of the picture and is mostly in lower case."""
    text = rng.choice(WORDS)
    written = text if rng.random() < easy else rng.choice((text, text, text, text, text.capitalize(), text.upper()))
    return _printed(size, written, rng, easy), {"word": text}


def digit(size: Size, rng: random.Random) -> tuple[Image.Image, dict[str, str]]:
    """A picture of a printed digit."""
    text = rng.choice(DIGITS)
    return _printed(size, text, rng, 0), {"digit": text}


def _printed(size: Size, text: str, rng: random.Random, easy: float) -> Image.Image:
    is_easy = rng.random() < easy
    ink, paper = ink_and_paper(rng, float(is_easy))
    font_name = FONTS[0] if is_easy else rng.choice(FONTS)
    left, top, right, bottom = _font(font_name, 64).getbbox(text)
    fill = 0.95 if is_easy else rng.uniform(0.7, 0.95)
    points = 64 * fill * min(size[0] / (right - left), size[1] / (bottom - top) * 0.85)
    font = _font(font_name, max(8, round(points)))
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", size, paper)
    room = (max(0, whole - used) for whole, used in zip(size, (right - left, bottom - top), strict=True))
    x, y = (space * (0.5 if is_easy else rng.random()) for space in room)
    ImageDraw.Draw(image).text((x - left, y - top), text, font=font, fill=ink)
    return image


@lru_cache(512)
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FOLDER / f"{name}.ttf", points)
