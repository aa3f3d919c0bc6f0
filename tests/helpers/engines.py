"""Runs a decoder's engine in the process of a test, without a cluster."""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from cluster.decode.start import start_engine
from tests.helpers.servers import with_changes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cluster.config import PrismConfig
    from cluster.decode.engine import Engine


def config(**decoder: Any) -> PrismConfig:
    """Returns the embedded default with changes to its decoder."""
    return with_changes({"decoder": decoder}).config


@asynccontextmanager
async def started(**decoder: Any) -> AsyncIterator[Engine]:
    """Runs an engine for the tests of this process, with vLLM's sockets in a temporary folder. The process's
    environment is restored afterwards."""
    before, engine = dict(os.environ), None
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.environ |= {"TMPDIR": folder, "VLLM_RPC_BASE_PATH": folder}
        try:
            engine = await start_engine(config(**decoder))
            yield engine
        finally:
            if engine:
                engine.stop()
            os.environ.clear()
            os.environ.update(before)
