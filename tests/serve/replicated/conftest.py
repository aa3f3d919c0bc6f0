"""One cluster with two Routers, three encoders and two decoders for all tests of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from loadtest.servers import sized
from tests.helpers.launching import Launched, launched_with
from tests.helpers.recorder import recording

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

NUM_ROUTERS = 2
NUM_ENCODERS = 3


@pytest.fixture(scope="package")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the calls that the cluster's processes record."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="package")
def launched(records: Path) -> Iterator[Launched]:
    """A running ``prism serve`` with two Routers, three encoders and two decoders."""
    changes = {
        "Router": sized(NUM_ROUTERS),
        "VisionEncoder": {**sized(NUM_ENCODERS), "max_ongoing_requests": 8},
        "Decoder": sized(2),
    }
    with recording(records), launched_with(changes) as running:
        yield running


@pytest.fixture(scope="package")
async def client(launched: Launched) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the cluster with several of each."""
    async with httpx.AsyncClient(base_url=launched.url, timeout=60) as client:
        yield client
