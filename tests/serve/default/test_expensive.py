"""Pictures that are made to be expensive are refused, and cost other users little time."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.bombs import exif_png
from tests.helpers.waiting import until
from tests.serve.default.bad_input.kind import CHAT, URL

if TYPE_CHECKING:
    import httpx

NUM_BOMBS = 4
NUM_FRACTIONS = 600_000
"""A bomb of this size takes seven seconds of a core, if nothing bounds it."""
PATIENCE_S = 15.0
"""A good picture that waits longer is disturbed. All bombs together would take twice as long."""


async def test_bombs_are_refused_while_others_are_served(prism: httpx.AsyncClient) -> None:
    """While the only preprocessor has several expensive pictures, a new picture is answered soon. Each bomb is refused
    by name."""
    before = cpu_s_of_children()
    assert before
    bombs = [
        asyncio.create_task(prism.post(CHAT, json=chat([image(exif_png(NUM_FRACTIONS + number)), text("?")])))
        for number in range(NUM_BOMBS)
    ]

    async def is_decoding() -> bool:
        return any(cpu_s > before.get(process, 0.0) + 0.1 for process, cpu_s in cpu_s_of_children().items())

    await until(is_decoding, PATIENCE_S, "no bomb is being decoded")
    started_s = time.monotonic()
    good = await prism.post(CHAT, json=chat([image(random_png(224, 168, seed=1501)), text("What is this?")]))
    assert good.status_code == 200, good.text
    assert time.monotonic() - started_s < PATIENCE_S
    for answer in await asyncio.gather(*bombs):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "image_too_expensive", URL)
        assert "save it again as a baseline JPEG or as a PNG" in error["message"]


def cpu_s_of_children() -> dict[psutil.Process, float]:
    """Returns the CPU seconds of the cluster's processes that decode pictures."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "cluster.isolation.child" in process.cmdline():
                found[process] = process.cpu_times().user
    return found
