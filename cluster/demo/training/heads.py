"""Classification heads over the vision tower: dense lessons in seeing, used in training only."""

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
"""Places per side of the grid that a head looks at."""

AMOUNTS: Final = 8
"""Things that a head adds up over a picture."""


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
        """The sum over kinds of the mean cross-entropy, for [batch, tokens, width] embeddings of pictures of one grid.

        Args:
            embeddings: What the tower makes of the pictures.
            grid: Their patches, as (height, width).
            labels: [batch] classes by kind, or ``IGNORED``.
            progress: Counts how often the heads are right.
            by_place: Add the loss of what ``Head.by_place`` says.
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
    """Names a picture's class by what four queries find anywhere in it, and by how much of some things there is.

    Both are ways of reading that a language model's attention has too. The second is for counting: queries give a mean,
    which tells nothing of a number unless the size of the picture is known too.
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
        """The same from what stands where on a coarse grid.

        That is quick to learn while things stand in the middle, and gives the tower something to hold on to; but a
        language model hardly reads so, hence it has a loss of its own.
        """
        plane = self.norm(embeddings).transpose(1, 2).unflatten(2, (grid[0] // 2, grid[1] // 2))
        logits: Tensor = self.classify_places(adaptive_avg_pool2d(plane, COARSE).flatten(1))
        return logits
