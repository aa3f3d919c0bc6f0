"""Batches for the trainer: pictures that share a grid, and the conversations about them as token ids.

Batch number n is the same in every run, because it depends only on the seed, the stage, the rank and n.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
from torch.utils.data import Dataset

from cluster.demo.training import questions
from cluster.demo.training.classes import CLASSES, KINDS, LETTERS
from cluster.demo.training.data import Scene, grid_of, scene, size_of_grid, sizes_by_grid
from cluster.demo.training.settings import SETTINGS
from cluster.preprocess import patchify

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from cluster.demo.training.data import PatchGrid

IGNORED: Final = -100
"""The target of every token outside an answer, and the class of every fact that is unknown for a picture."""

BATCH_SIZE: Final = 40
"""Conversations per rank and step."""

PADDED_TO: Final = 16
"""Lengths are multiples of this, because oneDNN compiles kernels for every new shape, which takes longer than running
them.
"""

MAX_PATCHES: Final = 192
SMALL_PATCHES: Final = 144
"""The first stage learns on small pictures, twice as fast; the second sees all sizes."""

EASY_BATCHES: Final = 600
"""The number of batches over which training moves from small black-and-white square pictures to all pictures."""

_WEIGHTS_VISION: Final = {"colour": 0.02, "shape": 0.18, "count": 0.26, "digit": 0.36, "word": 0.14, "photo": 0.04}
_WEIGHTS_ANSWERS: Final = {"colour": 0.05, "shape": 0.15, "count": 0.24, "digit": 0.32, "word": 0.15, "photo": 0.09}
"""How often each kind is drawn, per stage; the first stage prefers kinds that are hard to see."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch for one rank, as numpy arrays, because torch passes tensors between processes as shared-memory files.

    Args:
        pictures: For each picture of a conversation: [batch, num_patches, 588] uint8, and the grid that they share.
        labels: For each picture of a conversation: [batch] int64 classes by kind of question.
        ids: [batch, length] int64 token ids.
        targets: [batch, length] int64; the target at a position is the next token, or ``IGNORED``.
        positions: [3, batch, length] int64 rotary positions.
    """

    pictures: list[tuple[NDArray[np.uint8], PatchGrid]]
    labels: list[dict[str, NDArray[np.int64]]]
    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]


Turn = tuple[str, str]
"""A message of the user and the model's answer; ``<|image_pad|>`` stands for a picture."""

PICTURE: Final = "<|vision_start|><|image_pad|><|vision_end|>"


class Batches(Dataset[Batch]):
    """The batches of one rank and one stage, each drawn when it is asked for.

    Args:
        tokenizer: The model's tokenizer.
        seed: Names the seed and the stage.
        rank: The rank. At the same number, ranks draw different pictures of the same grids, so that their steps take
            equally long.
        num_batches: The number of batches.
        conversations: False for the first stage, which needs only pictures and classes.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, seed: str, rank: int, num_batches: int, conversations: bool
    ) -> None:
        self._encode = lru_cache(20_000)(lambda text: tokenizer.encode(text, add_special_tokens=False))
        self._image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._pad_token = tokenizer.pad_token_id
        self._seed, self._rank, self._num_batches, self._conversations = seed, rank, num_batches, conversations

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, number: int) -> Batch:
        if number >= self._num_batches:
            raise IndexError(number)
        rng = random.Random(f"{self._seed} {number}")
        num_pictures = rng.choices((1, 2, 0), (0.92, 0.055, 0.025))[0] if self._conversations else 1
        easy = 0.0 if self._conversations else max(0.0, 1 - number / EASY_BATCHES)
        max_patches = MAX_PATCHES if self._conversations else SMALL_PATCHES
        weights = _WEIGHTS_ANSWERS if self._conversations else _WEIGHTS_VISION
        grids = [_grid(rng, max_patches, easy) for _ in range(num_pictures)]
        longer = rng.random() < 0.15
        rng = random.Random(f"{self._seed} {number} {self._rank}")
        groups = [_scenes(grid, weights, easy, rng) for grid in grids]
        rows = [self._row([scenes[row] for scenes in groups], grids, longer, rng) for row in range(BATCH_SIZE)]
        pictures = [(_patches(scenes), grid) for grid, scenes in zip(grids, groups, strict=True)]
        return Batch(pictures, [_labels(scenes) for scenes in groups], *self._pad(rows))

    def _row(
        self, scenes: list[Scene], grids: list[PatchGrid], longer: bool, rng: random.Random
    ) -> tuple[list[int], list[int], NDArray[np.int64]]:
        """The ids, targets and positions of one conversation, with all tokens of its pictures."""
        ids, targets = (
            self._tokens(_turns(scenes, longer, rng), rng) if self._conversations else ([self._pad_token], [IGNORED])
        )
        long_ids, long_targets = [], []
        sizes = iter(grids)
        for token, target in zip(ids, targets, strict=True):
            height, width = next(sizes) if token == self._image_token else (2, 2)
            repeat = height * width // 4
            long_ids += [token] * repeat
            long_targets += [target] * repeat
        return long_ids, long_targets, rotary_positions(ids, self._image_token, grids)

    def _tokens(self, turns: list[Turn], rng: random.Random) -> tuple[list[int], list[int]]:
        """A chat in Qwen's format with one token per picture; only answers and their ends are targets."""
        system = questions.DEFAULT_SYSTEM if rng.random() < 0.7 else rng.choice(questions.SYSTEMS)
        ids = list(self._encode(f"<|im_start|>system\n{system}<|im_end|>\n"))
        targets = [IGNORED] * len(ids)
        for asked, answered in turns:
            prompt = self._encode(f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")
            answer = self._encode(f"{answered}<|im_end|>")
            ids += [*prompt, *answer]
            targets += [*[IGNORED] * (len(prompt) - 1), *answer, IGNORED]
            end = self._encode("\n")
            ids += end
            targets += [IGNORED] * len(end)
        return ids, targets

    def _pad(
        self, rows: list[tuple[list[int], list[int], NDArray[np.int64]]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        length = math.ceil(max(len(ids) for ids, _, _ in rows) / PADDED_TO) * PADDED_TO
        all_ids = np.full((len(rows), length), self._pad_token)
        all_targets = np.full((len(rows), length), IGNORED)
        all_positions = np.zeros((3, len(rows), length), np.int64)
        for row, (ids, targets, positions) in enumerate(rows):
            all_ids[row, : len(ids)] = ids
            all_targets[row, : len(ids)] = targets
            all_positions[:, row, : len(ids)] = positions
        return all_ids, all_targets, all_positions


def rotary_positions(ids: list[int], image_token: int, grids: list[PatchGrid]) -> NDArray[np.int64]:
    """Qwen2-VL's rotary positions of a prompt along time, height and width.

    Args:
        ids: The prompt with one token per picture.
        image_token: The id of that token.
        grids: The patches of each picture, as (height, width).

    Returns:
        [3, length] int64; the length counts every token of the pictures.

    Source: Qwen2-VL (arXiv 2409.12191, section 2.1, multimodal rotary position embedding).
    """
    parts, start, sizes = [], 0, iter(grids)
    for token in ids:
        if token == image_token:
            height, width = next(sizes)
            rows, columns = np.indices((height // 2, width // 2)).reshape(2, -1)
            parts.append(start + np.stack((np.zeros_like(rows), rows, columns)))
            start += max(height, width) // 2
        else:
            parts.append(np.full((3, 1), start))
            start += 1
    return np.concatenate(parts, 1)


def _turns(scenes: list[Scene], longer: bool, rng: random.Random) -> list[Turn]:
    """A conversation about up to two pictures: one question, or with ``longer`` up to four turns and small talk."""
    if not scenes:
        return [_small_talk(rng) for _ in range(2 if longer else 1)]
    turns = [_small_talk(rng)] if longer and rng.random() < 0.2 else []
    turns.append(_about_one(scenes[0], rng) if len(scenes) == 1 else _about_two(scenes, rng))
    while longer and len(turns) < 4 and rng.random() < 0.6:
        chance = rng.random()
        if chance < 0.2:
            turns.append(_small_talk(rng))
        elif len(scenes) == 1:
            turns.append(_fact(scenes[0], rng))
        else:
            turns.append(_ordinal_fact(scenes, rng))
    return turns


def _small_talk(rng: random.Random) -> Turn:
    asked, answered = rng.choice(questions.SMALL_TALK)
    return questions.decorate(rng.choice(asked), rng), answered


def _fact(shown: Scene, rng: random.Random) -> Turn:
    if rng.random() < 0.08:
        return questions.decorate(rng.choice(questions.PHRASINGS["anything"]), rng), shown.description
    kind = shown.kind if rng.random() < 0.6 else rng.choice(list(shown.facts))
    return questions.ask(kind, rng), shown.facts[kind]


def _about_one(shown: Scene, rng: random.Random) -> Turn:
    asked, answered = _fact(shown, rng)
    gap = rng.choice(("", "", "", "\n", " "))
    return (f"{PICTURE}{gap}{asked}" if rng.random() < 0.6 else f"{asked}{gap}{PICTURE}"), answered


def _ordinal_fact(scenes: list[Scene], rng: random.Random) -> Turn:
    chosen = rng.randrange(2)
    kind = rng.choice(list(scenes[chosen].facts))
    return questions.ask_of(("first", "second")[chosen], kind, rng), scenes[chosen].facts[kind]


def _about_two(scenes: list[Scene], rng: random.Random) -> Turn:
    asked, answered = _ordinal_fact(scenes, rng)
    form = rng.choice(("{p}{p}{q}", "{p}{p}{q}", "{q}{p}{p}", "First: {p} Second: {p} {q}", "{p}\n{p}\n{q}"))
    return form.format(p=PICTURE, q=asked), answered


def _grid(rng: random.Random, max_patches: int, easy: float) -> PatchGrid:
    """A random grid of patches for the pictures of a batch. A grid that fits more picture sizes of users is more
    likely."""
    grids = {grid: len(sizes) for grid, sizes in sizes_by_grid().items() if math.prod(grid) <= max_patches}
    grid = rng.choices(list(grids), [num_sizes**0.5 for num_sizes in grids.values()])[0]
    return (8, 8) if rng.random() < easy else grid


def _scenes(grid: PatchGrid, weights: dict[str, float], easy: float, rng: random.Random) -> list[Scene]:
    """A batch of pictures that the image processor resizes to the same grid."""
    found: list[Scene] = []
    while len(found) < BATCH_SIZE:
        drawn = scene(rng.choices(list(weights), list(weights.values()))[0], size_of_grid(grid, rng), rng, easy=easy)
        if grid_of(drawn.image.size) == grid:
            found.append(drawn)
    return found


def _patches(scenes: list[Scene]) -> NDArray[np.uint8]:
    return np.stack([patchify(shown.image, SETTINGS)[0] for shown in scenes])


def _labels(scenes: list[Scene]) -> dict[str, NDArray[np.int64]]:
    def label(shown: Scene, kind: str) -> int:
        return CLASSES[kind].index(shown.facts[kind]) if kind in shown.facts else IGNORED

    labels = {kind: np.array([label(shown, kind) for shown in scenes]) for kind in KINDS}
    for place, (name, letters) in enumerate(LETTERS.items()):
        words = [shown.facts.get("word") for shown in scenes]
        labels[name] = np.array([letters.index(f"{word:<5}"[place]) if word else IGNORED for word in words])
    return labels
