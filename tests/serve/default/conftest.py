"""One cluster with the embedded default for all tests of this package, because it takes half a minute to start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.helpers.servers import prism_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from deployments.local.launch import Cluster
    from tests.helpers.servers import BareServer


@pytest.fixture(scope="package")
def cluster(starting_bare: BareServer) -> Iterator[Cluster]:
    """A running Prism cluster with the embedded default. The bare server starts at the same time. It begins before, so
    it does not belong to the cluster and stays for later tests."""
    del starting_bare
    with prism_cluster() as running:
        yield running


@pytest.fixture(scope="package")
async def prism(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the Prism cluster."""
    async with httpx.AsyncClient(base_url=cluster.url, timeout=120) as client:
        yield client
