"""One bare engine for the whole session, because it takes half a minute to start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.helpers.servers import bare_vllm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="session")
def bare_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a bare vLLM server with the same checkpoint."""
    with bare_vllm(tmp_path_factory.mktemp("bare") / "log") as url:
        yield url


@pytest.fixture(scope="session")
async def bare(bare_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the bare vLLM server."""
    async with httpx.AsyncClient(base_url=bare_url, timeout=120) as client:
        yield client
