"""The endpoints of operators on a running cluster whose controller hangs, and under many callers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.helpers.ask import chat, text

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def controller() -> Iterator[psutil.Process]:
    """The process of Serve's controller. It runs again after the test."""
    below = psutil.Process().children(recursive=True)
    [found] = [one for one in below if "ServeController" in " ".join(one.cmdline())]
    yield found
    found.resume()


async def test_a_controller_that_hangs_is_told_and_stops_nobody(
    prism: httpx.AsyncClient, controller: psutil.Process
) -> None:
    """While Serve's controller is stopped, ``/status`` answers 503 in time, and everything else works. When it goes on,
    ``/status`` does so too."""
    controller.suspend()
    statuses = [asyncio.ensure_future(prism.get("/status")) for _ in range(40)]
    answer, health, metrics = await asyncio.gather(
        prism.post("/v1/chat/completions", json=chat([text("Hello")])), prism.get("/health"), prism.get("/metrics")
    )
    assert {one.status_code for one in (answer, health, metrics)} == {httpx.codes.OK}
    refused = await asyncio.gather(*statuses)
    controller.resume()
    assert {one.status_code for one in refused} == {httpx.codes.SERVICE_UNAVAILABLE}
    assert {one.json()["error"]["code"] for one in refused} == {"controller_unavailable"}
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert max(one.elapsed.total_seconds() for one in refused) < 15
    async with asyncio.timeout(60):
        while (status := await prism.get("/status")).status_code != httpx.codes.OK:
            pass
    assert {pool["status"] for pool in status.json()["pools"].values()} == {"HEALTHY"}


async def test_many_scrapes_share_their_runs(prism: httpx.AsyncClient) -> None:
    """Fifty scrapes at the same time get the same text from a few runs, and each replica has answered."""
    scrapes = await asyncio.gather(*(prism.get("/metrics") for _ in range(50)))
    assert {scrape.status_code for scrape in scrapes} == {httpx.codes.OK}
    assert len({scrape.text for scrape in scrapes}) <= 3
    answered = [line for line in scrapes[0].text.splitlines() if line.startswith("prism_replica_answered{")]
    assert [line.split()[-1] for line in answered] == 4 * ["1.0"]


async def test_each_series_has_one_target(prism: httpx.AsyncClient) -> None:
    """The targets for Prometheus have all series of the merged text, each exactly once and with the same labels. Only
    the series about the scrape itself are left out."""
    merged = (await prism.get("/metrics")).text
    targets = (await prism.get("/metrics/targets")).raise_for_status().json()
    assert len(targets) == 5
    series: list[str] = []
    for target in targets:
        assert target["targets"] == [prism.base_url.netloc.decode()]
        replica = target["labels"]["__param_replica"]
        answer = await prism.get(target["labels"]["__metrics_path__"], params={"replica": replica})
        series += names_of(answer.raise_for_status().text)
    assert len(set(series)) == len(series)
    assert {name for name in names_of(merged) if not name.startswith("prism_replica_answered{")} <= set(series)


def names_of(text: str) -> list[str]:
    """Returns the series of a Prometheus text, with their labels and without their values."""
    return [line.rpartition(" ")[0] for line in text.splitlines() if line and line[0] != "#"]
