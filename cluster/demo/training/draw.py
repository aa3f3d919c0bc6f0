"""Draws coloured shapes: one on paper or on a photograph, or several to be counted."""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw

from cluster.demo.training.classes import COLOURS, SHAPES

if TYPE_CHECKING:
    import random

RGB = tuple[int, int, int]
Size = tuple[int, int]
"""(width, height) in pixels."""
Points = list[tuple[float, float]]

_HUES: Final[dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]]] = {
    "red": ((-6, 5), (0.82, 1.0), (0.75, 1.0)),
    "orange": ((25, 38), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((51, 61), (0.75, 1.0), (0.9, 1.0)),
    "green": ((100, 145), (0.6, 1.0), (0.4, 1.0)),
    "blue": ((205, 242), (0.65, 1.0), (0.5, 1.0)),
    "purple": ((270, 300), (0.6, 1.0), (0.45, 0.8)),
    "pink": ((325, 350), (0.25, 0.6), (0.93, 1.0)),
    "brown": ((16, 30), (0.62, 0.9), (0.35, 0.58)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.1)),
    "white": ((0, 360), (0.0, 0.03), (0.96, 1.0)),
    "grey": ((0, 360), (0.0, 0.05), (0.4, 0.65)),
}
"""The ranges of hue (in degrees), saturation and value for each colour name."""


def colour(name: str, rng: random.Random) -> RGB:
    """A random shade of the named colour."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in _HUES[name])
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def distance(first: RGB, second: RGB) -> float:
    """The Euclidean distance between two colours, in levels of 0 to 255."""
    return math.dist(first, second)


def ground_colour(away_from: list[RGB], rng: random.Random, contrast: float = 150) -> RGB:
    """A random colour for the paper, often white, grey or black, that contrasts with all the given colours.

    Args:
        away_from: The colours to contrast with.
        rng: The source of randomness.
        contrast: The smallest distance to them at first; it falls slowly until a colour is found.
    """
    while True:
        draw = rng.random()
        if draw < 0.3:
            level = rng.choice((255, 255, 255, 250, 240, rng.randint(200, 255)))
            ground = (level, level, level)
        elif draw < 0.45:
            level = rng.choice((0, 0, 16, rng.randint(0, 70)))
            ground = (level, level, level)
        else:
            ground = (
                colour(rng.choice(COLOURS), rng)
                if draw < 0.7
                else (rng.randrange(256), rng.randrange(256), rng.randrange(256))
            )
        if all(distance(ground, other) > contrast for other in away_from):
            return ground
        contrast *= 0.97


def ink_and_paper(rng: random.Random, easy: float) -> tuple[RGB, RGB]:
    """Two colours that contrast in lightness too; in a share ``easy`` of all cases they are black and white."""
    if rng.random() < easy:
        return rng.choice((((0, 0, 0), (255, 255, 255)), ((255, 255, 255), (0, 0, 0))))
    while True:
        paper = ground_colour([], rng)
        ink = ground_colour([paper], rng, 180)
        if abs(sum(ink) - sum(paper)) / math.sqrt(3) > 150:
            return ink, paper


def one_shape(
    size: Size, rng: random.Random, background: Image.Image | None, easy: float
) -> tuple[Image.Image, dict[str, str]]:
    """A single shape and its facts: colour, shape and a count of one.

    Args:
        size: The size of the picture, in pixels.
        rng: The source of randomness.
        background: A picture of the same size to draw on; None draws on plain paper or a gradient.
        easy: The share of shapes that are large and centred.
    """
    name, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    shade = colour(name, rng)
    image = background or _paper(size, [shade], rng)
    if background is not None:
        shade = _contrasting(name, background, rng)
    if rng.random() < easy:
        radius, x, y = min(size) * 0.45, size[0] / 2, size[1] / 2
    else:
        radius = min(size) * rng.uniform(0.28, 0.47)
        x, y = (rng.uniform(min(radius, side / 2), max(side - radius, side / 2)) for side in size)
    _fill(image, outline(shape, x, y, radius, rng), shade)
    return image, {"colour": name, "shape": shape, "count": "1"}


def many_shapes(size: Size, rng: random.Random) -> tuple[Image.Image, dict[str, str]]:
    """One to four separate shapes of about the same size and area, and the facts: their count, and what they share."""
    wanted = rng.randint(1, 4)
    same_shape, same_colour = rng.random() < 0.7, rng.random() < 0.7
    names = [rng.choice(COLOURS)] * wanted if same_colour else [rng.choice(COLOURS) for _ in range(wanted)]
    shapes = [rng.choice(SHAPES)] * wanted if same_shape else [rng.choice(SHAPES) for _ in range(wanted)]
    shades = [colour(name, rng) for name in names]
    image = _paper(size, shades, rng)
    placed = _places(size, wanted, rng)
    for shape, shade, (x, y, radius) in zip(shapes, shades, placed, strict=True):
        _fill(image, _with_area(1.5 * radius**2, outline(shape, x, y, radius, rng)), shade)
    facts = {"count": str(wanted)}
    if len(set(names)) == 1:
        facts["colour"] = names[0]
    if len(set(shapes)) == 1:
        facts["shape"] = shapes[0]
    return image, facts


def outline(shape: str, x: float, y: float, radius: float, rng: random.Random) -> Points:
    """The corners of a shape inside a circle around (x, y), rotated so little that the shape keeps its name."""
    turn = math.radians(rng.uniform(-12, 12))
    if shape in ("square", "rectangle", "diamond"):
        turn /= 2
    points = [
        (px * math.cos(turn) - py * math.sin(turn), px * math.sin(turn) + py * math.cos(turn))
        for px, py in _unit(shape, rng)
    ]
    return [(x + radius * px, y + radius * py) for px, py in points]


def _unit(shape: str, rng: random.Random) -> Points:
    """Corners within the unit circle, y pointing down."""
    if shape == "circle":
        return [(math.cos(i * math.tau / 48), math.sin(i * math.tau / 48)) for i in range(48)]
    if shape == "square":
        return [(-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76)]
    if shape == "rectangle":
        long, short = 0.92, 0.92 / rng.uniform(2.1, 3.1)
        x, y = (long, short) if rng.random() < 0.6 else (short, long)
        return [(-x, -y), (x, -y), (x, y), (-x, y)]
    if shape == "triangle":
        top = rng.uniform(-0.2, 0.2)
        return [(top, -0.92), (0.92, 0.75), (-0.92, 0.75)]
    if shape == "star":
        inner = rng.uniform(0.36, 0.46)
        return [
            (
                (1 if i % 2 == 0 else inner) * math.sin(i * math.pi / 5),
                -(1 if i % 2 == 0 else inner) * math.cos(i * math.pi / 5),
            )
            for i in range(10)
        ]
    if shape == "heart":
        turns = (i * math.tau / 40 for i in range(40))
        return [
            (
                0.95 * math.sin(t) ** 3,
                0.06 * -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) - 0.1,
            )
            for t in turns
        ]
    if shape == "cross":
        a, b = rng.uniform(0.24, 0.34), 0.94
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    half = rng.uniform(0.6, 0.78)
    return [(0, -1), (half, 0), (0, 1), (-half, 0)]


def _with_area(area: float, points: Points) -> Points:
    """The shape, scaled about the centre of its corners to an area in square pixels."""
    turns = zip(points, [*points[1:], points[0]], strict=True)
    scale = math.sqrt(area / abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in turns) / 2))
    x, y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return [(x + scale * (px - x), y + scale * (py - y)) for px, py in points]


def _fill(image: Image.Image, points: Points, shade: RGB) -> None:
    """Fills a polygon with smooth edges, by drawing its mask at three times the size."""
    left, top = (math.floor(min(axis)) - 1 for axis in zip(*points, strict=True))
    right, bottom = (math.ceil(max(axis)) + 1 for axis in zip(*points, strict=True))
    scale = 3 if max(right - left, bottom - top) < 200 else 1
    mask = Image.new("L", (scale * (right - left), scale * (bottom - top)))
    ImageDraw.Draw(mask).polygon([(scale * (x - left), scale * (y - top)) for x, y in points], fill=255)
    mask = mask.reduce(scale) if scale > 1 else mask
    image.paste(shade, (left, top), mask)


def _paper(size: Size, away_from: list[RGB], rng: random.Random) -> Image.Image:
    """Plain paper, or a gentle gradient between two papers."""
    first = ground_colour(away_from, rng)
    if rng.random() < 0.8:
        return Image.new("RGB", size, first)
    second = first
    while second == first or _nearest(first, second, away_from) < 100:
        second = ground_colour(away_from, rng)
        first = first if rng.random() < 0.9 else ground_colour(away_from, rng)
    ramp = Image.linear_gradient("L").resize(size)
    ramp = ramp.transpose(Image.Transpose.ROTATE_180) if rng.random() < 0.5 else ramp
    return Image.composite(Image.new("RGB", size, first), Image.new("RGB", size, second), ramp)


def _nearest(first: RGB, second: RGB, others: list[RGB]) -> float:
    """The smallest distance between a gradient of two colours and any of the other colours."""
    steps = [tuple(round(a + part * (b - a)) for a, b in zip(first, second, strict=True)) for part in (0.3, 0.5, 0.7)]
    return min(math.dist(step, other) for step in steps for other in others)


def _contrasting(name: str, background: Image.Image, rng: random.Random) -> RGB:
    """The best of four random shades of a colour: the one that differs most from the background's mean."""
    red, green, blue = background.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    return max((colour(name, rng) for _ in range(4)), key=lambda shade: distance(shade, (red, green, blue)))


def _places(size: Size, wanted: int, rng: random.Random) -> list[tuple[float, float, float]]:
    """Centres and radii of circles that do not touch; they shrink until all fit."""
    largest = min(min(size) * 0.21, math.sqrt(size[0] * size[1]) * rng.uniform(0.125, 0.14))
    while True:
        placed: list[tuple[float, float, float]] = []
        for _ in range(40 * wanted):
            radius = largest * rng.uniform(0.9, 1)
            x, y = (rng.uniform(radius, side - radius) for side in size)
            if all(math.hypot(x - px, y - py) > 1.35 * (radius + other) for px, py, other in placed):
                placed.append((x, y, radius))
            if len(placed) == wanted:
                return placed
        largest *= 0.9
