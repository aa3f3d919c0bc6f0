"""The requests of the load."""

from __future__ import annotations

import json
from typing import Any

from loadtest.workload import Workload


def test_new_pictures_are_new_and_seen_ones_are_few() -> None:
    """Requests with new pictures never repeat one. Requests with seen pictures use as many different ones as asked
    for."""
    workload = Workload(model="m", max_tokens=1, num_pictures=3, wait_s=1)

    def pictures(kind: Any, count: int) -> set[str]:
        bodies = [json.loads(workload.body(kind)) for _ in range(count)]
        return {body["messages"][0]["content"][0]["image_url"]["url"] for body in bodies}

    assert len(pictures("new picture", 50)) == 50
    assert len(pictures("seen picture", 100)) == 3
    assert all(0.5 <= workload.pause_s() <= 1.5 for _ in range(100))
