"""One bare engine for the whole session, because it takes half a minute to start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.helpers.servers import BareServer, bare_vllm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="session")
def starting_bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    """A bare vLLM server with the same checkpoint, which has begun to start."""
    with bare_vllm(tmp_path_factory.mktemp("bare") / "log") as server:
        yield server


@pytest.fixture(scope="session")
async def bare(starting_bare: BareServer) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the bare vLLM server, which is ready."""
    starting_bare.wait_until_healthy()
    async with httpx.AsyncClient(base_url=starting_bare.url, timeout=120) as client:
        yield client
