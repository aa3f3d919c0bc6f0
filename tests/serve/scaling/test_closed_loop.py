"""The policy decides for pools that Serve really starts and ends. ``tests.helpers.closed_loop`` has the long proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.closed_loop import Load, paced_cluster, run_load
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deployments.local.launch import Cluster

SPIKE_SEED = 6
LENGTHS_S = (10.0, 12.0, 3.0)
TO_ZERO_S = 90


@pytest.fixture(scope="module")
def paced() -> Iterator[Cluster]:
    """A paced cluster in which preprocessors and encoders may go to zero."""
    with paced_cluster("joint", {"Preprocessor": 0, "VisionEncoder": 0}) as cluster:
        yield cluster


async def test_pools_wake_up_follow_a_spike_and_go_back_to_zero(paced: Cluster) -> None:
    """Pools without replicas start for the first picture. A spike of pictures raises the encoders within seconds, and
    not the decoders. Afterwards both pools go back to zero, the cluster stays healthy, and no request has failed."""
    async with httpx.AsyncClient(base_url=paced.url, timeout=60) as client:
        first = chat([image(random_png(84, 84, 1)), text("What is it?")], max_tokens=4, stream=True)
        assert (await client.post("/v1/chat/completions", json=first)).status_code == httpx.codes.OK
        run = await run_load(paced.url, Load.random(SPIKE_SEED, LENGTHS_S), "joint")
        assert run.failures == []
        raised_s = run.raised_s("VisionEncoder")
        assert raised_s is not None
        assert 0 < raised_s < 10
        assert run.most("VisionEncoder") >= 3
        assert run.most("Decoder") == 1

        async def are_at_zero() -> bool:
            pools = (await client.get("/status")).json()["pools"]
            return not any(pools[name]["replicas"].get("RUNNING") for name in ("Preprocessor", "VisionEncoder"))

        await until(are_at_zero, TO_ZERO_S, "the pools did not go to zero")
        assert (await client.get("/health")).status_code == httpx.codes.OK
