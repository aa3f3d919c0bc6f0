"""Prints the progress of training: the step, the speed and the share of recent right answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from torch import distributed

from cluster.demo.training.classes import LETTERS

if TYPE_CHECKING:
    from torch import Tensor

REPORT_EVERY: Final = 100
"""Steps from one line to the next."""


class Progress:
    """The progress of one stage: each rank counts its answers, and the first prints a line every ``REPORT_EVERY``
    steps."""

    def __init__(self, stage: str, num_steps: int) -> None:
        self._stage, self._num_steps = stage, num_steps
        self._started, self._steps, self._samples = time.perf_counter(), 0, 0
        self._seen: dict[str, int] = {}
        self._right: dict[str, int] = {}

    def count(self, kind: str, logits: Tensor, classes: Tensor) -> None:
        """Adds the outcome of [num, classes] logits against [num] right classes."""
        self._seen[kind] = self._seen.get(kind, 0) + len(classes)
        self._right[kind] = self._right.get(kind, 0) + int((logits.detach().argmax(-1) == classes).sum())

    def step(self, num_samples: int) -> None:
        """Marks the end of a step."""
        self._steps += 1
        self._samples += num_samples * distributed.get_world_size()
        if self._steps % REPORT_EVERY == 0 and distributed.get_rank() == 0:
            seconds = time.perf_counter() - self._started
            rates = as_line({kind: self._right[kind] / seen for kind, seen in sorted(self._seen.items())})
            speed = f"{seconds:.0f} s {self._samples / seconds:.0f} samples/s"
            say(f"{self._stage} {self._steps}/{self._num_steps} {speed}  {rates}")
            self._seen, self._right = {}, {}


def as_line(rates: dict[str, float]) -> str:
    """Accuracies by kind on one line; single letters are left out."""
    return "  ".join(f"{kind} {rate:.3f}" for kind, rate in rates.items() if kind not in LETTERS)


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)  # noqa: T201 - printing progress is the purpose
