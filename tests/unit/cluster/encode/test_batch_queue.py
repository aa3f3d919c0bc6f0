"""The batch queue in front of the vision tower, with a tower whose runs a test releases."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cluster.checkpoint import Checkpoint
from cluster.config import ModelConfig
from cluster.encode.batch_queue import BatchQueue, Encoded
from cluster.encode.picture_encoder import PictureEncoder
from cluster.messages import Embedding, Picture, Pixels
from cluster.preprocess import preprocess
from tests.helpers.pictures import png
from tests.helpers.waiting import settled

if TYPE_CHECKING:
    from collections.abc import Sequence


class GatedTower:
    """A tower that records its runs. Each run waits until a test lets it go on."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.begun = Event()
        self.may_go_on = Event()

    def encode(self, batch: Sequence[Pixels]) -> list[Embedding]:
        self.runs.append([pixels.digest for pixels in batch])
        self.begun.set()
        assert self.may_go_on.wait(30)
        if "broken" in self.runs[-1]:
            raise ValueError("a picture that the tower cannot take")
        return [Embedding(pixels.digest, np.zeros((1, 1), np.uint8), "float32", pixels.grid) for pixels in batch]

    async def has_begun(self) -> None:
        """Returns once a run is under way."""
        assert await asyncio.to_thread(self.begun.wait, 30)


def pixels_of(digest: str, num_patches: int = 4) -> Pixels:
    """Returns the pixels of a picture with a given number of patches."""
    return Pixels(digest, np.zeros((num_patches, 1), np.uint8), (1, 2, num_patches // 2))


async def start(queue: BatchQueue, *pictures: Pixels) -> list[asyncio.Task[Encoded]]:
    """Starts one caller for each picture and returns once all of them are in the queue."""
    tasks = [asyncio.create_task(queue.encode(picture)) for picture in pictures]
    await asyncio.sleep(0)
    return tasks


async def test_the_pictures_that_wait_are_known() -> None:
    """Pictures that wait for a run are counted, with the wait of the oldest. A picture in its run does not wait."""
    tower = GatedTower()
    queue = BatchQueue(tower.encode, batch_patches=8)
    tasks = await start(queue, pixels_of("a"))
    await tower.has_begun()
    assert (queue.num_waiting, queue.oldest_s) == (0, 0.0)
    tasks += await start(queue, pixels_of("b"), pixels_of("c"))
    before_s = queue.oldest_s
    assert queue.num_waiting == 2
    assert queue.oldest_s > before_s > 0
    tower.may_go_on.set()
    await asyncio.gather(*tasks)
    assert queue.num_waiting == 0


async def test_those_who_wait_share_the_next_run() -> None:
    """A single picture runs at once. Pictures that arrive during its run share the next run, up to the budget."""
    tower = GatedTower()
    queue = BatchQueue(tower.encode, batch_patches=8)
    first = await start(queue, pixels_of("a"))
    await tower.has_begun()
    others = await start(queue, pixels_of("b"), pixels_of("c"), pixels_of("large", 16), pixels_of("d"))
    tower.may_go_on.set()
    encoded = await asyncio.gather(*first, *others)
    assert [part.embedding.digest for part in encoded] == ["a", "b", "c", "large", "d"]
    assert tower.runs[0] == ["a"]
    assert sorted(map(sorted, tower.runs[1:])) == [["b", "c"], ["d"], ["large"]]
    assert all(part.waited_s >= 0 and part.ran_s > 0 for part in encoded)


async def test_a_free_tower_waits_for_what_is_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """A free tower waits for a picture that has been announced. Once the picture has arrived or failed, the batch
    runs."""
    monkeypatch.setattr("cluster.encode.batching.MAX_WAIT_S", 60)
    tower = GatedTower()
    tower.may_go_on.set()
    queue = BatchQueue(tower.encode, batch_patches=100)
    arrived = asyncio.Event()

    async def arrive() -> Encoded:
        with queue.coming():
            await arrived.wait()
        return await queue.encode(pixels_of("b"))

    waiting = [asyncio.create_task(arrive()), *await start(queue, pixels_of("a"))]
    await settled()
    assert not tower.runs
    arrived.set()
    await asyncio.gather(*waiting)
    assert tower.runs == [["a", "b"]]
    with suppress(ConnectionError), queue.coming():
        waiting = await start(queue, pixels_of("c"))
        raise ConnectionError
    await asyncio.gather(*waiting)
    assert tower.runs[1:] == [["c"]]


async def test_the_wait_for_what_is_coming_ends() -> None:
    """A picture that takes long to arrive does not delay the others beyond the limit."""
    tower = GatedTower()
    tower.may_go_on.set()
    queue = BatchQueue(tower.encode, batch_patches=100)
    with queue.coming():
        await asyncio.gather(*await start(queue, pixels_of("a")))


async def test_patches_wait_until_their_run_has_ended() -> None:
    """Patches count as waiting in the queue and in a run. Those of runs that have succeeded count as done."""
    tower = GatedTower()
    queue = BatchQueue(tower.encode, batch_patches=8)
    first = await start(queue, pixels_of("a", 4))
    await tower.has_begun()
    others = await start(queue, pixels_of("b", 8), pixels_of("broken", 12))
    assert (queue.num_waiting_patches, queue.num_run_patches) == (24, 0)
    tower.may_go_on.set()
    await asyncio.gather(*first, *others, return_exceptions=True)
    assert (queue.num_waiting_patches, queue.num_run_patches) == (0, 12)
    assert queue.run_s > 0


async def test_a_bad_picture_fails_alone() -> None:
    """If a batch fails, its pictures run one by one. The bad picture gets the tower's error, and the others get
    their embeddings."""
    tower = GatedTower()
    queue = BatchQueue(tower.encode, batch_patches=100)
    waiting = await start(queue, pixels_of("first"))
    await tower.has_begun()
    waiting += await start(queue, pixels_of("a"), pixels_of("broken"), pixels_of("b"))
    tower.may_go_on.set()
    first, a, broken, b = await asyncio.gather(*waiting, return_exceptions=True)
    assert [part.embedding.digest for part in (first, a, b) if isinstance(part, Encoded)] == ["first", "a", "b"]
    assert isinstance(broken, ValueError)
    assert tower.runs == [["first"], ["a", "broken", "b"], ["a"], ["broken"], ["b"]]
    assert queue.worked_at_s > 0


async def test_who_leaves_the_queue_is_not_encoded() -> None:
    """A caller that is cancelled while it waits causes no run. A caller that is cancelled during its run does not
    disturb the others."""
    tower = GatedTower()
    queue = BatchQueue(tower.encode, batch_patches=100)
    running = await start(queue, pixels_of("a"))
    await tower.has_begun()
    leaving, staying = await start(queue, pixels_of("b"), pixels_of("c"))
    leaving.cancel()
    running[0].cancel()
    await asyncio.wait([leaving, *running])
    tower.may_go_on.set()
    assert (await staying).embedding.digest == "c"
    assert tower.runs == [["a"], ["c"]]


async def test_what_is_called_in_the_queue_waits_behind_the_run_under_way() -> None:
    """A health check waits for the run under way, and fails with the error that the tower raises."""
    tower = GatedTower()
    queue = BatchQueue(tower.encode, batch_patches=100)
    waiting = await start(queue, pixels_of("a"))
    await tower.has_begun()
    check = asyncio.create_task(queue.run(lambda: tower.runs.append(["check"])))
    await asyncio.sleep(0)
    assert tower.runs == [["a"]]
    tower.may_go_on.set()
    await asyncio.gather(check, *waiting)
    with pytest.raises(ZeroDivisionError):
        await queue.run(lambda: 1 // 0)
    assert queue.worked_at_s < 0


async def test_embeddings_through_the_queue_are_those_of_single_runs() -> None:
    """Pictures of different requests in one batch get the embeddings of single runs, to 1e-5 of the largest number."""
    checkpoint = Checkpoint(ModelConfig(dtype="float32"))
    encoder = PictureEncoder.load(checkpoint.path, checkpoint.processor, dtype="float32")
    sizes = [(28, 28), (224, 168), (168, 224), (333, 777), (224, 168), (560, 28)]
    pictures = [
        preprocess(Picture(str(number), png(*size), *size, ""), checkpoint.processor)
        for number, size in enumerate(sizes)
    ]
    queue = BatchQueue(encoder.encode, batch_patches=1000)
    for encoded, pixels in zip(await asyncio.gather(*map(queue.encode, pictures)), pictures, strict=True):
        [alone] = encoder.encode([pixels])
        together, exact = (embedding.rows.view(np.float32) for embedding in (encoded.embedding, alone))
        assert np.abs(together - exact).max() < 1e-5 * np.abs(exact).max()
