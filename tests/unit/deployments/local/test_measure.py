"""The measuring of speeds, on a made-up cluster whose speeds are known."""

from __future__ import annotations

import base64
import io
import itertools
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from cluster.scaling.simulation.speeds import RouterSpeeds, Speeds
from deployments.local.measure import (
    ANSWER_TOKENS,
    Prober,
    line_through,
    measure_path,
    measure_pictures,
    measure_router,
)

PIXEL_S, PICTURE_S = 2e-8, 0.003
PATCH_S, RUN_S = 0.0005, 0.002
REQUEST_S, TOKEN_S, READING_S = 0.004, 0.0002, 0.4
PATH_S, PICTURE_PATH_S = 0.03, 0.008
STEP_S, PREFILL_TOKENS_PER_S = 0.01, 1000.0


class MadeUpCluster:
    """Answers as Prism does. The times in its waterfall and its CPU seconds follow from the constants above."""

    def __init__(self) -> None:
        self.router_cpu_s = 1.0
        self.pictures: set[bytes] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "made-up", "max_model_len": 4096}]})
        if request.url.path == "/metrics":
            self.router_cpu_s += READING_S
            text = (
                "# TYPE process_cpu_seconds_total counter\n"
                f'process_cpu_seconds_total{{pool="router"}} {self.router_cpu_s}\n'
                'process_cpu_seconds_total{pool="decoder"} 77\n'
            )
            return httpx.Response(200, text=text)
        return self._chat(json.loads(request.content))

    def _chat(self, body: dict[str, Any]) -> httpx.Response:
        self.router_cpu_s += REQUEST_S
        if body.get("stream"):
            self.router_cpu_s += TOKEN_S * (ANSWER_TOKENS - 1)
            return httpx.Response(200, text='data: {"content": "a"}\n\n' * ANSWER_TOKENS + "data: [DONE]\n\n")
        num_tokens, timing = 9, {"transfer": 1000 * PATH_S, "stream": 77.0}
        for part in body["messages"][0]["content"]:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                assert data not in self.pictures, "a picture came twice, so a cache would have helped"
                self.pictures.add(data)
                width, height = Image.open(io.BytesIO(data)).size
                num_patches = 4 * round(width / 28) * round(height / 28)
                num_tokens += num_patches // 4
                timing["preprocess"] = 1000 * (PICTURE_S + width * height * PIXEL_S)
                timing["encode"] = 1000 * (RUN_S + num_patches * PATCH_S)
                timing["transfer"] += 1000 * PICTURE_PATH_S
        timing["prefill"] = 1000 * (STEP_S + num_tokens / PREFILL_TOKENS_PER_S)
        header = ", ".join(f"{stage};dur={duration_ms:g}" for stage, duration_ms in timing.items())
        return httpx.Response(200, json={"usage": {"prompt_tokens": num_tokens}}, headers={"server-timing": header})


@pytest.fixture
def prober() -> Prober:
    """Returns a prober of the made-up cluster."""
    return Prober(httpx.Client(transport=httpx.MockTransport(MadeUpCluster()), base_url="http://made.up"))


def test_a_line_goes_through_its_points() -> None:
    """The fitted line gives the fixed cost and the slope, and neither is below zero."""
    assert line_through([(x, 3 + 2 * x) for x in (1, 5, 9)]) == pytest.approx((3, 2))
    base, slope = line_through([(x, -1.0 - x) for x in (1, 5, 9)])
    assert (base, slope > 0) == (0, True)


def test_the_speeds_of_pictures_are_found(prober: Prober) -> None:
    """The fixed costs and the costs per pixel and patch are those of the cluster, and every picture is new."""
    preprocessor, encoder = measure_pictures(prober)
    assert preprocessor == pytest.approx({"picture_s": PICTURE_S, "pixel_s": PIXEL_S}, rel=1e-3)
    assert encoder == pytest.approx({"run_s": RUN_S, "patch_s": PATCH_S}, rel=1e-3)


def test_the_cost_of_a_router_is_found(prober: Prober) -> None:
    """Requests and tokens are told apart by the CPU seconds of short and of long answers. Neither other pools nor the
    readings themselves count."""
    assert measure_router(prober) == pytest.approx({"request_s": REQUEST_S, "token_s": TOKEN_S}, rel=1e-3)


def test_the_time_between_the_pools_is_what_their_work_leaves(prober: Prober) -> None:
    """A lone request takes the time of the pools' work and the time between them. The stream is no part of either."""
    found = measure_path(prober, RouterSpeeds(request_s=REQUEST_S, picture_s=0, pixel_s=0))
    assert found["request_path_s"] == pytest.approx(PATH_S - REQUEST_S, rel=1e-3)
    assert found["picture_path_s"] == pytest.approx(PICTURE_PATH_S, rel=1e-3)


def test_prompts_share_no_beginning(prober: Prober) -> None:
    """No two texts begin alike, so the prefix cache holds none of them."""
    texts = [prober.text(10)["text"] for _ in range(20)]
    assert all(one[:8] != other[:8] for one, other in itertools.combinations(texts, 2))


def test_speeds_can_be_written_and_read() -> None:
    """A file of speeds without the processor's settings is one that the simulator takes."""
    speeds = Speeds.model_validate(
        {"encoder": {"patch_s": 1e-5}, "decoder": {"prefill_tokens_per_s": 1, "step_s": 1, "kv_tokens": 1}}
    )
    assert Speeds.model_validate(speeds.model_dump(mode="json", exclude={"processor"})) == speeds
