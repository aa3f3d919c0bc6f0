"""Training in several processes is training on their common batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from cluster.demo.training import ranks

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES = torch.tensor([[1.0, 2.0], [3.0, -4.0]])


def leave_gradients(rank: int, folder: Path) -> None:
    """Runs one rank: it averages the gradients of its own sample with the other rank's. The second rank's sample does
    not use the second layer."""
    layers = [layer_of_ones(), layer_of_ones()]
    loss = layers[0](SAMPLES[rank]).sum()
    if rank == 0:
        loss = loss + layers[1](SAMPLES[rank]).sum()
    loss.backward()
    ranks.average_gradients(layers)
    torch.save([weight.grad for layer in layers for weight in layer.parameters()], folder / f"{rank}.pt")


def fail_on_one(rank: int) -> None:
    """Raises an error in one rank while the other waits for it."""
    if rank == 1:
        raise LookupError("the second rank is lost")


def layer_of_ones() -> nn.Linear:
    """Returns a linear layer from two numbers to one, with all weights 1."""
    layer = nn.Linear(2, 1)
    nn.init.ones_(layer.weight)
    return layer


def test_gradients_are_those_of_the_common_batch(tmp_path: Path) -> None:
    """Every rank gets the mean of all ranks' gradients. A layer that a rank did not use counts as zero."""
    ranks.run(leave_gradients, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected = [SAMPLES.mean(0)[None], torch.ones(1), SAMPLES[0][None] / 2, torch.tensor([0.5])]
    for mine, other, right in zip(first, second, expected, strict=True):
        torch.testing.assert_close(mine, right)
        torch.testing.assert_close(other, right)


def test_an_error_in_one_rank_ends_all() -> None:
    """An error in one rank ends all ranks. The caller that started them gets this error, or the error of a rank that
    lost its peer."""
    with pytest.raises(ProcessRaisedException):
        ranks.run(fail_on_one, 2)
