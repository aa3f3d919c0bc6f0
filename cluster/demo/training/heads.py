"""Classification heads on the vision tower, which teach it faster than answers alone; used in training only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from cluster.demo.training.batches import IGNORED
from cluster.demo.training.classes import CLASSES, LETTERS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from cluster.demo.training.data import PatchGrid
    from cluster.demo.training.progress import Progress

COARSE: Final = 4
"""Cells per side of the coarse grid that a head reads."""

AMOUNTS: Final = 8
"""How many quantities a head sums over a picture."""


class Heads(nn.Module):
    """One head for each kind of question, and one for each letter of a word."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({kind: Head(width, len(classes)) for kind, classes in (CLASSES | LETTERS).items()})

    def loss(
        self,
        embeddings: Tensor,
        grid: PatchGrid,
        labels: dict[str, NDArray[np.int64]],
        progress: Progress,
        by_place: bool,
    ) -> Tensor:
        """The sum over all heads of the mean cross-entropy, for pictures of one grid.

        Args:
            embeddings: [batch, tokens, width], the tower's output.
            grid: The patches of a picture, as (height, width).
            labels: [batch] classes by kind, or ``IGNORED``.
            progress: Counts how often the heads are right.
            by_place: Adds the loss of ``Head.by_place``.
        """
        total = torch.zeros(())
        for kind, head in self.heads.items():
            assert isinstance(head, Head)
            classes = torch.from_numpy(labels[kind])
            known = classes != IGNORED
            if known.any():
                logits = head(embeddings[known])
                total = total + cross_entropy(logits, classes[known], reduction="sum") / len(known)
                if by_place:
                    placed = head.by_place(embeddings[known], grid)
                    total = total + cross_entropy(placed, classes[known], reduction="sum") / len(known)
                progress.count(kind, logits, classes[known])
        return total


class Head(nn.Module):
    """Classifies a picture in two ways: by what four queries find anywhere in it, and by quantities summed over it.

    The attention of a language model can read in both ways too. The sums are for counting: a query gives a mean, which
    says nothing about a number unless the size of the picture is known.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(4, width) * 0.02)
        self.classify = nn.Linear(4 * width, num_classes)
        self.classify_places = nn.Linear(COARSE * COARSE * width, num_classes)
        self.gates = nn.Linear(width, AMOUNTS)
        self.classify_amounts = nn.Sequential(nn.Linear(AMOUNTS, 64), nn.SiLU(), nn.Linear(64, num_classes))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Takes [batch, tokens, width]; gives [batch, num_classes]."""
        normed = self.norm(embeddings)
        attention = torch.softmax(normed @ self.queries.T, 1)
        found = (attention.transpose(1, 2) @ normed).flatten(1)
        amounts = torch.sigmoid(self.gates(normed)).sum(1)
        logits: Tensor = self.classify(found) + self.classify_amounts(amounts)
        return logits

    def by_place(self, embeddings: Tensor, grid: PatchGrid) -> Tensor:
        """Classifies [batch, tokens, width] by what is where on a coarse grid; gives [batch, num_classes].

        This is quick to learn while objects are in the middle, and gives the tower a start. A language model hardly
        reads this way, so this has a loss of its own.
        """
        plane = self.norm(embeddings).transpose(1, 2).unflatten(2, (grid[0] // 2, grid[1] // 2))
        logits: Tensor = self.classify_places(adaptive_avg_pool2d(plane, COARSE).flatten(1))
        return logits
