"""The waterfall of a request in the response, in the log and in the metrics."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.waterfall import STAGES
from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deployments.local.launch import Cluster
    from tests.helpers.ask import Part

NUM_REQUESTS = 15
SIDE = 448
ON_A_MISS = {"preprocess_queue", "preprocess", "encode_queue", "encode"}
DECODER = {"transfer", "render", "decode_queue", "prefill", "first_token"}
ROUTER = {"ingress", "receive", "parse", "fetch"}


@dataclass
class Client:
    """An HTTP client that adds as little time as possible to what it measures."""

    connection: http.client.HTTPConnection

    def ask(self, parts: list[Part], **options: Any) -> tuple[float, dict[str, float]]:
        """Sends a streamed request and returns the time to its first byte and the durations in its ``Server-Timing``
        header, all in milliseconds."""
        body = json.dumps(chat(parts, max_tokens=2, stream=True, prism={"waterfall": True}, **options)).encode()
        started_s = time.perf_counter()
        self.connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = self.connection.getresponse()
        response.read1(1)
        ttft_ms = (time.perf_counter() - started_s) * 1000
        assert response.status == http.client.OK
        response.read()
        stages = (entry.split(";dur=") for entry in response.headers["server-timing"].split(", "))
        return ttft_ms, {stage: float(duration_ms) for stage, duration_ms in stages}


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    """A client of the Prism cluster."""
    where = urlsplit(cluster.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    yield Client(connection)
    connection.close()


def new_picture(seed: int) -> list[Part]:
    """Returns a question about a picture that differs for each seed."""
    return [image(random_png(SIDE, SIDE, 5000 + seed)), text("What is it?")]


def seen_picture(seed: int) -> list[Part]:
    """Returns a question about one and the same picture, with a text that differs for each seed."""
    return [image(random_png(SIDE, SIDE, 4999)), *long_text(seed)]


def long_text(seed: int) -> list[Part]:
    """Returns a page of text that differs for each seed."""
    return [text(f"{seed}: " + "A long story about nothing much. " * 60)]


@pytest.mark.parametrize(
    ("parts", "stages"),
    [
        (new_picture, ROUTER | ON_A_MISS | DECODER),
        (seen_picture, ROUTER | {"cache_hit"} | DECODER),
        (long_text, ROUTER | DECODER),
    ],
    ids=["new picture", "seen picture", "text"],
)
def test_the_stages_add_up_to_what_the_client_sees(
    client: Client, parts: Callable[[int], list[Part]], stages: set[str]
) -> None:
    """The waterfall lists the stages that a request passes through, and their sum is the client's TTFT within 5 %.

    The sum lacks the way from the Router back to the client, about a millisecond here, so the requests are not tiny
    ones.
    """
    client.ask(parts(-1))  # a picture that is seen has to be seen first
    shares = []
    for seed in range(NUM_REQUESTS):
        ttft_ms, spent_ms = client.ask(parts(seed))
        assert spent_ms.keys() - {"stream"} == stages
        assert min(spent_ms.values()) >= 0
        shares.append(sum(spent_ms.values()) / ttft_ms)
    assert 0.95 <= statistics.median(shares) <= 1


def test_the_log_and_the_metrics_tell_the_same(cluster: Cluster, client: Client) -> None:
    """Each answered request has one line with its stages in the Router's log, and counts in the histogram of each
    stage."""
    before = counts(client)
    client.ask(new_picture(900))
    after = counts(client)
    assert {stage for stage in after if after[stage] == before.get(stage, 0) + 1} == ROUTER | ON_A_MISS | DECODER | {
        "stream"
    }
    [log] = (cluster.logs / "serve").glob("replica_*_Router_*.log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = [line for line in lines if line["message"] == "answered"][-1]
    assert last["waterfall_ms"].keys() == ROUTER | ON_A_MISS | DECODER | {"stream"}
    assert list(last["waterfall_ms"]) == [stage for stage in STAGES if stage in last["waterfall_ms"]]
    assert (last["endpoint"], last["status"]) == ("chat", 200)
    assert not [line for line in lines if line["message"].startswith("POST")]


def test_the_log_has_the_tokens(cluster: Cluster, client: Client) -> None:
    """The line of a whole answer has the tokens of its ``usage``, and those of its pictures. The line of a stream has
    those of its prompt."""
    client.ask(new_picture(901))
    body, name = json.dumps(chat(new_picture(901), max_tokens=3, n=2, temperature=1)).encode(), "all-of-its-tokens"
    headers = {"content-type": "application/json", "x-request-id": name}
    client.connection.request("POST", "/v1/chat/completions", body, headers)
    usage = json.loads(client.connection.getresponse().read())["usage"]
    [log] = (cluster.logs / "serve").glob("replica_*_Router_*.log")
    wait_until(lambda: f'"{name}"' in log.read_text(), 10, "the line of the answer has not come")
    lines = [json.loads(line) for line in log.read_text().splitlines() if '"answered"' in line]
    stream, whole = lines[-2:]
    assert whole["request_id"] == name
    assert (whole["prompt_tokens"], whole["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert whole["picture_tokens"] == stream["picture_tokens"] > 0
    assert stream["prompt_tokens"] == whole["prompt_tokens"] > whole["picture_tokens"]


def counts(client: Client) -> dict[str, int]:
    """Returns the number of requests that each stage has observed."""
    client.connection.request("GET", "/metrics")
    text = client.connection.getresponse().read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {each.labels["stage"]: int(each.value) for each in samples if each.name == "prism_stage_seconds_count"}
