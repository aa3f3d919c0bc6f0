"""What the model can tell apart: the closed list of answers for each kind of question."""

from __future__ import annotations

from typing import Final

COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
SHAPES: Final = ("circle", "square", "rectangle", "triangle", "star", "heart", "cross", "diamond")
COUNTS: Final = ("1", "2", "3", "4")
DIGITS: Final = tuple("0123456789")
# fmt: off
WORDS: Final = (
    "on", "go", "no", "we", "yes", "cat", "dog", "sun", "bus", "cup", "egg", "fox", "hat", "key", "map", "sky", "tree",
    "book", "fish", "home", "milk", "park", "stop", "time", "apple", "house", "light", "music", "water", "world",
)
# fmt: on
PHOTOS: Final = (
    "astronaut",
    "bricks",
    "photographer",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "motorcycle",
    "rocket",
    "temple",
    "flower",
    "galaxies",
    "retina",
    "tissue",
    "horse",
    "officer",
    "page",
)

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "count": COUNTS,
    "digit": DIGITS,
    "word": WORDS,
    "photo": PHOTOS,
}
"""By kind of question, in the order that the classification heads of the first training stage use."""

LETTERS: Final = {f"letter {place}": " abcdefghijklmnopqrstuvwxyz" for place in range(1, 6)}
"""What the first stage also learns about a word: each of its letters, or that it has ended."""

KINDS: Final = tuple(CLASSES)

ADVERTISED: Final = ("colour", "shape", "count", "digit", "photo")
"""The kinds that the model answers right at least 19 times in 20; the evaluation fails if one of them does not."""

ANSWERS: Final = tuple(dict.fromkeys(answer for answers in CLASSES.values() for answer in answers))
