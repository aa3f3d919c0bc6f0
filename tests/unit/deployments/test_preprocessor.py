"""A preprocessor's replica: its children, its numbers for the scaling policy, and its health check."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from cluster import health
from cluster.config import PrismConfig
from cluster.errors import InternalError, InvalidPicture, PictureTooExpensive
from cluster.messages import Picture
from cluster.scaling.work import BUSY_S, WAITING, WORK
from deployments.preprocessor import Preprocessor
from tests.helpers.bombs import BOMBS, PARAM
from tests.helpers.pictures import BROKEN, SAMPLES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOOD = Picture("1" * 64, SAMPLES["png-RGB"].data, *SAMPLES["png-RGB"].size, param=PARAM)


@pytest.fixture(scope="module")
async def replica() -> AsyncIterator[Preprocessor]:
    """A replica of the preprocessor pool in this process, without Ray."""
    started = Preprocessor.__new__(Preprocessor)
    construct: Any = started.__init__  # type: ignore[misc]  # Serve awaits it
    await construct(PrismConfig())
    gc.unfreeze()
    yield started
    started._children.end()


async def test_a_replica_is_ready_when_its_first_child_is(replica: Preprocessor) -> None:
    """After the start a child lives that has the niceness of pictures, and it prepares a picture."""
    [template] = [child for child in psutil.Process().children() if "cluster.isolation.child" in child.cmdline()]
    [child] = template.children()
    before = child.cpu_times()
    assert (await replica.preprocess(GOOD)).digest == GOOD.digest
    assert template.children() == [child]
    assert child.cpu_times() >= before


async def test_pixels_wait_until_they_are_done(replica: Preprocessor) -> None:
    """The scaling policy hears of the pixels that wait, of those that are done, and of the time that they took. A
    refused picture is not done, and no longer waits."""
    before = replica.record_autoscaling_stats()
    tasks = [asyncio.create_task(replica.preprocess(GOOD)) for _ in range(3)]
    await asyncio.sleep(0)  # all have come, and none is done
    waiting = replica.record_autoscaling_stats()
    assert waiting[WAITING] == 3 * GOOD.num_pixels
    pixels = await asyncio.gather(*tasks)
    for picture, refusal in (
        (Picture("0" * 64, BROKEN["png-cut"], 46, 34, param=PARAM), InvalidPicture),
        (BOMBS["tiff tile"].picture(), PictureTooExpensive),
    ):
        with pytest.raises(refusal):
            await replica.preprocess(picture)
    after = replica.record_autoscaling_stats()
    assert after[WAITING] == 0
    assert after[WORK] - before[WORK] == 3 * GOOD.num_pixels
    assert after[BUSY_S] - before[BUSY_S] == pytest.approx(sum(one.ran_s for one in pixels))


async def test_a_defect_is_an_internal_error(replica: Preprocessor) -> None:
    """An exception of a child that is no refusal leaves the replica as an internal error, with the traceback as its
    cause."""
    with pytest.raises(InternalError) as caught:
        await replica.preprocess(Picture("0" * 64, "no bytes", 46, 34, param=PARAM))  # type: ignore[arg-type]
    assert "Traceback" in str(caught.value.__cause__)


async def test_a_stopped_child_is_replaced_by_the_health_check(
    replica: Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve's health check passes, although the idle child was stopped, because another child takes its place."""
    monkeypatch.setattr(health, "PROVEN_S", 0.0)
    [template] = [child for child in psutil.Process().children() if "cluster.isolation.child" in child.cmdline()]
    [child] = template.children()
    child.suspend()
    await replica.check_health()
    await asyncio.to_thread(psutil.wait_procs, [child], timeout=10)
    assert not child.is_running()
    await replica.check_health()
