"""The classes that the model can tell apart: a closed list of answers for each kind of question."""

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
"""The answers to each kind of question, in the order of the classes of the classification heads."""

LETTERS: Final = {f"letter {place}": " abcdefghijklmnopqrstuvwxyz" for place in range(1, 6)}
"""The letters of a word, which the first stage also learns: a class per letter, and the space for the end of the
word."""

KINDS: Final = tuple(CLASSES)

ADVERTISED: Final = ("colour", "shape", "count", "digit", "photo")
"""The kinds that the model answers right at least 19 times in 20; otherwise the evaluation fails."""

ANSWERS: Final = tuple(dict.fromkeys(answer for answers in CLASSES.values() for answer in answers))
