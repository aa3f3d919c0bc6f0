"""The encoder's health check."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import ray.serve

import deployments.encoder
from cluster.checkpoint import Checkpoint
from cluster.config import ModelConfig, PrismConfig
from cluster.messages import Picture, Pixels
from cluster.preprocess import preprocess
from tests.helpers.pictures import png

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = [(28, 28), (112, 112), (224, 168), (168, 224), (560, 28), (1000, 1000), (333, 777)]
MODEL = ModelConfig(dtype="float32")
CHECKPOINT = Checkpoint(MODEL)


@pytest.fixture(scope="module")
def batch() -> list[Pixels]:
    """Pictures of many sizes, ready for the tower."""
    pictures = [Picture(str(number), png(*size), *size, "") for number, size in enumerate(SIZES)]
    return [preprocess(picture, CHECKPOINT.processor) for picture in pictures]


@pytest.fixture(autouse=True)
def heap() -> Iterator[None]:
    """Lets the garbage collector have the objects again that a replica has frozen in this process."""
    yield
    gc.unfreeze()


async def test_a_tower_that_fails_is_found_by_its_health_check(
    monkeypatch: pytest.MonkeyPatch, batch: list[Pixels]
) -> None:
    """After a failed run, Serve's health check encodes the smallest picture and fails as the tower does."""
    unused = SimpleNamespace(preprocess=SimpleNamespace(is_initialized=True, options=lambda **_: None))
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr(ray.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(deployments.encoder, "own_pool", lambda: unused)
    replica = deployments.encoder.VisionEncoder(PrismConfig(model=MODEL), unused)  # type: ignore[arg-type]
    await replica.check_health()
    with monkeypatch.context() as patch:
        patch.setattr(replica._queue, "_encode", broken)
        patch.setattr(replica._tower, "encode", broken)
        await replica.check_health()  # it has just worked
        with pytest.raises(RuntimeError, match="device-side assert"):
            await replica._queue.encode(batch[0])
        with pytest.raises(RuntimeError, match="device-side assert"):
            await replica.check_health()
    await replica.check_health()  # one picture's fault is over with it
    monkeypatch.setattr(deployments.encoder, "PROVEN_S", 0)
    runs: list[Any] = []
    monkeypatch.setattr(replica._tower, "encode", runs.append)
    await asyncio.gather(*(replica.check_health() for _ in range(3)))
    assert len(runs) == 1
    await replica.check_health()
    assert len(runs) == 2


def broken(_: list[Pixels]) -> None:
    """Raises the error of a CUDA device that has failed."""
    raise RuntimeError("CUDA error: device-side assert triggered")
