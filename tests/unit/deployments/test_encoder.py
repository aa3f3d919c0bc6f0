"""The encoder's health check, and its settings that change while it runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray.serve
from prometheus_client import REGISTRY
from pydantic import ValidationError

import cluster.health
import deployments.encoder
from cluster.checkpoint import Checkpoint
from cluster.config import EncoderUserConfig, ModelConfig, PrismConfig
from cluster.errors import PictureLost
from cluster.messages import Elsewhere, Embedding, Picture, Pixels
from cluster.preprocess import preprocess
from tests.helpers.pictures import png
from tests.helpers.waiting import settled

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


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> deployments.encoder.VisionEncoder:
    """A replica of the encoder pool in this process, without Ray."""
    unused: Any = SimpleNamespace(preprocess=SimpleNamespace(is_initialized=True, options=lambda **_: None))
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="one"))
    monkeypatch.setattr(ray.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(deployments.encoder, "own_pool", lambda: unused)
    return deployments.encoder.VisionEncoder(PrismConfig(model=MODEL), unused)


async def test_a_tower_that_fails_is_found_by_its_health_check(
    monkeypatch: pytest.MonkeyPatch, replica: deployments.encoder.VisionEncoder, batch: list[Pixels]
) -> None:
    """After a failed run, Serve's health check encodes the smallest picture and fails as the tower does."""
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
    monkeypatch.setattr(cluster.health, "PROVEN_S", -1)
    runs: list[Any] = []
    monkeypatch.setattr(replica._tower, "encode", runs.append)
    await asyncio.gather(*(replica.check_health() for _ in range(3)))
    assert len(runs) == 1
    await replica.check_health()
    assert len(runs) == 2


async def test_a_tower_that_is_stuck_ends_its_replica(
    monkeypatch: pytest.MonkeyPatch, replica: deployments.encoder.VisionEncoder, batch: list[Pixels]
) -> None:
    """If the tower's thread hangs in a run, the health check ends the process. A run that is only long does not: it has
    many times the time that earlier runs of as many patches took, and the first one has a minute."""
    monkeypatch.setattr(cluster.health, "POLL_S", 0.01)
    monkeypatch.setattr(cluster.health, "ANSWER_S", 0.05)
    monkeypatch.setattr(deployments.encoder, "PATIENCE_S", 0.1)
    reasons: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(deployments.encoder, "end_replica", reasons.put_nowait)
    queue, may_end = replica._queue, threading.Event()
    encode = queue._encode

    def hang(pixels: list[Pixels]) -> Any:
        may_end.wait()
        return encode(pixels)

    monkeypatch.setattr(queue, "_encode", hang)
    encoding = asyncio.ensure_future(queue.encode(batch[0]))
    await settled()
    await replica.check_health()
    assert replica.record_routing_stats()["is_silent"]
    assert replica._patience_s() == deployments.encoder.FIRST_RUN_S
    assert reasons.empty()
    queue.run_s, queue.num_run_patches = 1.0, batch[0].num_patches
    assert replica._patience_s() == 0.1 + deployments.encoder.SLOWER
    queue.run_s = 0.0
    assert "vision tower" in await asyncio.wait_for(reasons.get(), 30)
    may_end.set()
    await encoding


@pytest.mark.parametrize(
    ("peers", "reply", "outcome"),
    [
        ({}, None, "absent"),
        ({"home": "actor"}, None, "granted"),
        ({"home": "actor"}, Elsewhere("two"), "elsewhere"),
        ({"home": "actor"}, Embedding("0" * 64, np.zeros((1, 1), np.uint8), "float32", (1, 2, 2)), "lent"),
        ({"home": "actor"}, TimeoutError(), "failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_claims_are_counted_by_their_outcome(
    replica: deployments.encoder.VisionEncoder,
    monkeypatch: pytest.MonkeyPatch,
    peers: dict[str, str],
    reply: Any,
    outcome: str,
) -> None:
    """Each question at a picture's home counts once, by what came of it."""

    async def call(*_: Any) -> Any:
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(deployments.encoder, "actors_of", lambda _: peers)
    monkeypatch.setattr(deployments.encoder, "call", call)
    before = REGISTRY.get_sample_value("prism_claims_total", {"outcome": outcome}) or 0.0
    found = await replica._ask("home", Picture("0" * 64, b"", 28, 28, ""))
    assert found is (None if isinstance(reply, Exception) else reply)
    assert REGISTRY.get_sample_value("prism_claims_total", {"outcome": outcome}) == before + 1


async def test_settings_change_while_it_runs(replica: deployments.encoder.VisionEncoder) -> None:
    """A new ``user_config`` sets the size of the cache and of a run, and the routers hear of the new size. Values that
    are left out take their defaults again."""
    default = replica.record_routing_stats()["max_held"]
    await replica.reconfigure({"cache_bytes": 2 * EncoderUserConfig().cache_bytes, "batch_patches": 5})
    assert (replica.record_routing_stats()["max_held"], replica._queue.batch_patches) == (2 * default, 5)
    await replica.reconfigure({})
    assert replica.record_routing_stats()["max_held"] == default
    assert replica._queue.batch_patches == EncoderUserConfig().batch_patches


async def test_wrong_settings_fail_a_start_and_are_ignored_later(
    replica: deployments.encoder.VisionEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica does not start with wrong settings. One that serves keeps its own, and its log says why."""
    wrong = {"batch_patches": 0}
    with pytest.raises(ValidationError, match="batch_patches"):
        await replica.reconfigure(wrong)
    await replica.reconfigure({"batch_patches": 5})
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    try:
        await replica.reconfigure(wrong)
    finally:
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert replica._queue.batch_patches == 5
    assert "batch_patches" in caplog.text


def broken(_: list[Pixels]) -> None:
    """Raises the error of a CUDA device that has failed."""
    raise RuntimeError("CUDA error: device-side assert triggered")


async def test_a_picture_without_bytes_has_an_embedding_or_is_lost(replica: deployments.encoder.VisionEncoder) -> None:
    """A picture whose bytes nobody holds any more is answered from the kept embeddings, or ends in an error."""
    bare = Picture("bare", b"", 28, 28, "")
    with pytest.raises(PictureLost, match="no encoder holds its picture"):
        await replica.encode(bare)
    kept = Embedding("bare", np.zeros((1, 64), np.uint8), "float32", (1, 2, 2))

    async def made(_: Picture) -> Embedding:
        return kept

    await replica._cache.embedding_for(bare, made)
    assert (await replica.encode(bare)).rows is kept.rows  # type: ignore[union-attr]
