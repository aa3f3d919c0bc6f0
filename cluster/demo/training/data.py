"""Examples for training and evaluation: a picture, a question about it, and the answer."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final

from cluster.demo.training import draw, photos, questions, scans, words
from cluster.demo.training.classes import KINDS
from cluster.demo.training.settings import SETTINGS
from cluster.preprocess import smart_resize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from cluster.demo.training.draw import Size

__all__ = ["KINDS", "Example", "Scene", "grid_of", "held_out", "scene", "size_of_grid", "sizes_by_grid"]

PatchGrid = tuple[int, int]
"""A picture's patches as (height, width)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question of the evaluation: an RGB picture in a size that users send, the question, and the right answer."""

    image: Image.Image = field(repr=False)
    question: str
    answer: str
    kind: str

    def is_answered_by(self, text: str) -> bool:
        """Returns True if a text equals the answer, apart from case, surrounding space and a final full stop."""
        return _plain(text) == _plain(self.answer)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and the facts about it: the answer to each kind of question that can be asked."""

    image: Image.Image = field(repr=False)
    facts: dict[str, str]
    kind: str

    @property
    def description(self) -> str:
        """The answer to "What is in the picture?"."""
        if self.kind in ("digit", "word"):
            return f"The {self.kind} {self.facts[self.kind]}."
        if self.kind == "photo":
            return self.facts["photo"]
        if self.facts["count"] == "1":
            article = "An" if self.facts["colour"] == "orange" else "A"
            return f"{article} {self.facts['colour']} {self.facts['shape']}."
        return f"{self.facts['count']} shapes."


def held_out(kind: str, num: int, seed: int) -> Iterator[Example]:
    """Yields examples whose pictures training never saw: drawn from other seeds, with digits from scans kept apart.

    Photographs are other crops of the same photographs, because there are only one or two of each subject.
    """
    rng = random.Random(f"held out {kind} {seed}")
    every_size = [size for sizes in sizes_by_grid().values() for size in sizes]
    for _ in range(num):
        shown = scene(kind, rng.choice(every_size), rng, held_out=True)
        yield Example(shown.image, questions.ask(kind, rng), shown.facts[kind], kind)


def scene(kind: str, size: Size, rng: random.Random, held_out: bool = False, easy: float = 0) -> Scene:
    """Draws a picture about which the given kind of question can be asked.

    Args:
        kind: One of ``KINDS``.
        size: (width, height) in pixels. A small size is doubled so that the answer stays legible, which keeps the grid
            or nearly so. For a word, the longer side becomes the width.
        rng: The source of randomness.
        held_out: Takes handwritten digits from the scans that training never sees.
        easy: The share of pictures that are easy: black and white, or large and centred. Training begins with them.
    """
    if kind == "word":
        size = max(size), min(size)
    while min(size) < _SMALLEST[kind]:
        size = (size[0] * 2, size[1] * 2)
    image, facts = _draw(kind, size, rng, held_out, easy)
    if image.width * image.height < 400 * 400 and rng.random() < 0.2:
        image = photos.compressed(image, rng)
    return Scene(image, facts, kind)


def size_of_grid(grid: PatchGrid, rng: random.Random) -> Size:
    """A random (width, height) in pixels that the image processor resizes to this grid."""
    return rng.choice(sizes_by_grid()[grid])


@cache
def sizes_by_grid() -> dict[PatchGrid, list[Size]]:
    """Sizes that users send, from icons to large photographs, by the grid that the processor resizes them to."""
    rng = random.Random(20251)
    sizes: dict[PatchGrid, list[Size]] = {}
    for _ in range(40_000):
        longer = math.exp(rng.uniform(math.log(110), math.log(360))) if rng.random() < 0.7 else _any_side(rng)
        ratio = rng.choice((1, 1, 4 / 3, 3 / 2, 16 / 9, rng.uniform(1, 1.6), rng.uniform(1, 2)))
        shorter = max(8, round(longer / ratio))
        size = (round(longer), shorter) if rng.random() < 0.6 else (shorter, round(longer))
        sizes.setdefault(grid_of(size), []).append(size)
    return {grid: found for grid, found in sorted(sizes.items()) if len(found) >= 100}


def grid_of(size: Size) -> PatchGrid:
    """The grid of patches, as (height, width), that the processor makes of a picture of this (width, height)."""
    height, width = smart_resize(size[1], size[0], SETTINGS)
    return height // SETTINGS.patch_size, width // SETTINGS.patch_size


_SMALLEST: Final = {"colour": 20, "shape": 28, "count": 64, "digit": 8, "word": 40, "photo": 56}
"""The smallest shorter side of a picture of each kind, in pixels."""


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".")


def _any_side(rng: random.Random) -> float:
    return math.exp(rng.uniform(math.log(16), math.log(1400)))


def _draw(kind: str, size: Size, rng: random.Random, held_out: bool, easy: float) -> tuple[Image.Image, dict[str, str]]:
    chance = rng.random()
    if kind in ("colour", "shape"):
        return draw.one_shape(size, rng, photos.backdrop(size, rng) if chance < 0.05 else None, easy)
    if kind == "count":
        return draw.many_shapes(size, rng)
    if kind == "word":
        return words.word(size, rng, easy)
    if kind == "photo":
        return photos.view(size, rng)
    if chance < max(0.75 if size[0] == size[1] else 0.5, easy):
        return scans.plain(size, rng, held_out)
    if 0.75 < chance < 0.78 + 0.05 * (size[0] != size[1]) and not held_out:
        return words.digit(size, rng)
    return scans.written(size, rng, held_out, easy)
