"""The ``prism`` command, from start to Ctrl-C, on a cluster with two tensor-parallel workers."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from PIL import Image

from cluster import priority
from deployments.local.processes import MINDING_S
from loadtest.servers import APP, ROOT, free_port, sized
from tests.helpers.ask import SAMPLES, chat, image, square, text
from tests.helpers.collector import Collector, collecting
from tests.helpers.launching import (
    PRISM,
    Launched,
    ahead_of_engines,
    engine_of,
    is_ready_again,
    launched_with,
    replicas,
    thread_niceness,
)
from tests.helpers.samples import lookups
from tests.helpers.stories import story_of
from tests.helpers.waiting import until
from tests.serve.default.test_parity import compare, requests

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/v1/chat/completions"
NUM_COMPARED = 40
MAX_IN_FLIGHT = 12


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """An OpenTelemetry collector."""
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def launched(collector: Collector) -> Iterator[Launched]:
    """A running ``prism serve`` with a tensor-parallel size of 2, and a collector for its traces."""
    changes: dict[str, dict[str, Any]] = {
        "tracing": {"endpoint": collector.url},
        "decoder": {"tensor_parallel_size": 2, "bind_cores": "0|1"},
        # Tests stop preprocessors for longer than Serve would wait for a check.
        "Preprocessor": {**sized(2), "health_check_timeout_s": 60},
        "Router": {
            "user_config": {"max_in_flight": MAX_IN_FLIGHT, "max_body_bytes": 2**20, "max_held_bytes": 2**21},
        },
    }
    with launched_with(changes) as running:
        yield running


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs ``prism`` with its output captured."""
    return subprocess.run([PRISM, *words], capture_output=True, text=True, check=False, timeout=120)


async def test_two_tensor_parallel_workers_give_the_same_answers(launched: Launched, bare: httpx.AsyncClient) -> None:
    """With two tensor-parallel workers, a sample of the parity requests gives bare vLLM's tokens."""
    cases = list(requests())
    spread = list(islice(cases, 0, None, len(cases) // NUM_COMPARED))
    async with httpx.AsyncClient(base_url=launched.url, timeout=120) as client:
        assert await compare(spread, client, bare) == []


def test_pictures_come_after_tokens_where_engines_have_cores(launched: Launched) -> None:
    """If the engine has cores of its own, threads and processes that compute for pictures have a lower priority than
    token-carrying processes."""
    assert run("ask", "--url", launched.url, SAMPLES / "shape.png", "What colour is the shape?").returncode == 0
    [decoder] = replicas(launched.root, "Decoder")
    assert engine_of(decoder).nice() == 0
    assert thread_niceness(decoder) == {0}
    [encoder] = replicas(launched.root, "VisionEncoder")
    assert thread_niceness(encoder) == {0, priority.PICTURES_BESIDE_ENGINE}
    for preprocessor in replicas(launched.root, "Preprocessor", at_least=2):
        assert preprocessor.nice() == 0
        children = preprocessor.children(recursive=True)
        assert {child.nice() for child in children} == {priority.PICTURES_BESIDE_ENGINE}


async def test_vllms_span_is_below_the_requests(launched: Launched, collector: Collector) -> None:
    """A request with a ``traceparent`` is one trace, from the Router's stages to vLLM's own span."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    body = chat([text("Hello")], max_tokens=3)
    async with httpx.AsyncClient(base_url=launched.url, timeout=30) as client:
        answer = await client.post(PATH, json=body, headers=headers)
    assert answer.status_code == httpx.codes.OK

    async def has_come() -> bool:
        return {"llm_request", PATH} <= collector.of_trace(trace).keys()

    await until(has_come, 30, "the spans have not come")
    spans = collector.of_trace(trace)
    assert spans["llm_request"].parent_span_id == spans["prefill"].parent_span_id == spans[PATH].span_id


def test_ask_streams_an_answer(launched: Launched) -> None:
    """``prism ask`` prints the answer, alone and plain when piped."""
    asked = run("ask", "--url", launched.url, SAMPLES / "shape.png", "What colour is the shape?")
    assert (asked.returncode, asked.stdout) == (0, "red\n")


def test_ask_takes_many_pictures(launched: Launched) -> None:
    """``prism ask`` sends all pictures that are named."""
    words: list[str | Path] = ["ask", "--url", launched.url, SAMPLES / "shape.png", SAMPLES / "digit.png", "Hello"]
    assert run(*words).returncode == 0


def test_status_lists_the_pools(launched: Launched) -> None:
    """``prism status`` gives one plain line per pool and exits 0 when all can serve."""
    status = run("status", "--url", launched.url)
    assert status.returncode == 0
    rows = {line.split("\t")[0]: line.split("\t")[1:3] for line in status.stdout.splitlines()}
    one, two = ["healthy", "1 running"], ["healthy", "2 running"]
    assert rows == {"Router": one, "Preprocessor": two, "VisionEncoder": one, "Decoder": one}


def test_exit_codes_mean_something(launched: Launched, tmp_path: Path) -> None:
    """``prism`` exits with 1 if the server refuses, 2 for a wrong command line, and 3 if no server answers."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    refused = run("ask", "--url", launched.url, broken, "What is it?")
    assert refused.returncode == 1
    assert "PNG" in refused.stderr
    assert run("ask", "--url", launched.url, tmp_path / "missing.png", "What is it?").returncode == 2
    assert run("status", "--url", f"http://127.0.0.1:{free_port()}").returncode == 3


async def test_more_than_fits_is_refused_at_once(launched: Launched) -> None:
    """Requests beyond the limit of requests in flight get 429 with Retry-After, and those within it are served."""
    body = chat([text("Go on.")], stream=True, max_tokens=60, ignore_eos=True)
    async with httpx.AsyncClient(base_url=launched.url, timeout=120) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/chat/completions", json=body) for _ in range(3 * MAX_IN_FLIGHT))
        )
    served = [answer for answer in answers if answer.status_code == httpx.codes.OK]
    refused = [answer for answer in answers if answer.status_code == httpx.codes.TOO_MANY_REQUESTS]
    assert len(served) + len(refused) == len(answers)
    assert len(served) >= MAX_IN_FLIGHT
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in served)
    assert refused
    assert all(answer.headers["retry-after"] and answer.json()["error"]["code"] == "overloaded" for answer in refused)


async def test_more_bytes_than_fit_are_refused_at_once(launched: Launched) -> None:
    """Concurrent large requests get 429 if their bytes do not fit, and the room is free again afterwards."""
    noise = Image.effect_noise((800, 800), 200)
    file = io.BytesIO()
    noise.save(file, "PNG")
    body = chat([image(file.getvalue()), text("Hello")], max_tokens=1)
    assert 2**19 < len(json.dumps(body)) < 2**20
    async with httpx.AsyncClient(base_url=launched.url, timeout=120) as client:
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(MAX_IN_FLIGHT)))
        refused = [answer for answer in answers if answer.status_code == httpx.codes.TOO_MANY_REQUESTS]
        assert 0 < len(refused) < len(answers)
        assert all(answer.json()["error"]["figures"]["limit_bytes"] == 2**21 for answer in refused)
        assert {answer.status_code for answer in answers} == {200, 429}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == httpx.codes.OK


def test_a_machine_that_is_too_small_is_told_so() -> None:
    """``prism serve`` ends at once with the figures if the application needs GPUs that the machine does not have."""
    served = run("serve", ROOT / "deployments" / "qwen2_5_vl_32b.yaml", "--port", str(free_port()))
    assert served.returncode == 1
    assert "10 GPUs, and this machine has" in served.stderr


async def test_a_replica_that_does_not_answer_hides_no_other(launched: Launched) -> None:
    """With one of two preprocessors stopped, ``/health`` answers 200 and ``/metrics`` has the other one's metrics."""
    stopped, _ = replicas(launched.root, "Preprocessor", at_least=2)
    async with httpx.AsyncClient(base_url=launched.url, timeout=60) as client:
        stopped.suspend()
        try:
            health, metrics = await asyncio.gather(client.get("/health"), client.get("/metrics"))
        finally:
            stopped.resume()
    assert health.status_code == httpx.codes.OK
    assert metrics.text.count('process_resident_memory_bytes{pool="preprocessor"') == 1
    answered = [
        line for line in metrics.text.splitlines() if line.startswith('prism_replica_answered{pool="preprocessor"')
    ]
    assert sorted(line.split()[-1] for line in answered) == ["0.0", "1.0"]


async def asked_of_encoder(
    client: httpx.AsyncClient, ask: dict[str, Any], stopped: list[psutil.Process]
) -> asyncio.Future[httpx.Response]:
    """Stops the preprocessors, sends a request with a new picture, and returns its future response once an encoder
    works on it."""
    before = (await lookups(client, "miss")).total()
    for process in stopped:
        process.suspend()  # so that the encoder waits
    answer = asyncio.ensure_future(client.post("/v1/chat/completions", json=ask))

    async def has_begun() -> bool:
        return (await lookups(client, "miss")).total() > before

    await until(has_begun, 30, "no encoder got the picture")
    return answer


async def test_a_replica_that_dies_with_a_request_in_it_fails_that_request_alone(launched: Launched) -> None:
    """A request whose encoder is killed gets a typed error that names the pool. Text requests go on, and pictures
    are answered again soon."""
    stopped, [encoder] = replicas(launched.root, "Preprocessor", at_least=2), replicas(launched.root, "VisionEncoder")
    ask = chat([square("blue", 100), text("What colour is the shape?")])
    async with httpx.AsyncClient(base_url=launched.url, timeout=60) as client:
        try:
            with_picture = await asked_of_encoder(client, ask, stopped)
            encoder.kill()
            failed = await with_picture
        finally:
            for process in stopped:
                process.resume()
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "stage_unavailable")
        assert "encoder" in failed.json()["error"]["message"]
        assert (await client.post("/v1/chat/completions", json=chat([text("Hello")]))).status_code == httpx.codes.OK
        await is_ready_again(client)
        answer = await client.post("/v1/chat/completions", json=ask)
    assert answer.json()["choices"][0]["message"]["content"] == "blue"


async def test_a_request_that_waits_for_a_replica_outlives_it(launched: Launched) -> None:
    """Calls that wait for a replica that dies are answered by its replacement."""
    ask = chat([square("blue", 90), text("What colour is the shape?")])
    async with httpx.AsyncClient(base_url=launched.url, timeout=120) as client:
        dying = replicas(launched.root, "Preprocessor", at_least=2)
        asked = await asked_of_encoder(client, ask, dying)
        for process in dying:
            process.kill()
        answer = await asked
    assert answer.json()["choices"][0]["message"]["content"] == "blue"


def long_stream(**options: Any) -> dict[str, Any]:
    """A request for a stream of many tokens."""
    usage = {"stream_options": {"include_usage": True}}
    return chat([text("Count to a thousand.")], stream=True, max_tokens=150, ignore_eos=True, **usage, **options)


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], victims: list[psutil.Process]) -> str:
    """Sends a request for a stream, kills the victims when it has begun, and returns all of its text."""
    with ahead_of_engines():
        async with client.stream("POST", PATH, json=body) as response:
            parts = response.aiter_text()
            sent = await anext(parts)
            for victim in victims:
                victim.kill()
            return sent + "".join([part async for part in parts])


async def test_a_worker_that_dies_fails_its_requests_with_a_typed_error(launched: Launched) -> None:
    """If one of an engine's two workers is killed, the engine ends too. A stream in it that has no time to wait for
    another decoder ends with a typed error and ``[DONE]``, and ``/health`` answers 503."""
    [decoder] = replicas(launched.root, "Decoder")
    workers = [child for child in engine_of(decoder).children() if "resource_tracker" not in " ".join(child.cmdline())]
    assert len(workers) == 2
    async with httpx.AsyncClient(base_url=launched.url, timeout=60) as client:
        stream = asyncio.ensure_future(streamed(client, long_stream(prism={"timeout_s": 5}), workers[:1]))
        health = await client.get("/health")

        async def is_told() -> bool:
            nonlocal health
            health = await client.get("/health")
            return health.status_code == httpx.codes.SERVICE_UNAVAILABLE

        await until(is_told, 30, "/health does not tell")
        assert "decoder" in health.json()["error"]["message"]
        assert health.json()["error"]["param"] is None
        *_, error, done, _ = (await stream).split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


async def test_a_decoder_whose_engine_died_is_replaced(launched: Launched) -> None:
    """After the death of a worker, and so of its engine, Serve starts another decoder. ``/health`` answers 200 again,
    and the answers are right."""
    async with httpx.AsyncClient(base_url=launched.url, timeout=60) as client:
        await is_ready_again(client)
    asked = run("ask", "--url", launched.url, SAMPLES / "shape.png", "What colour is the shape?")
    assert (asked.returncode, asked.stdout) == (0, "red\n")


async def test_the_stream_of_a_decoder_that_dies_waits_for_its_successor(launched: Launched) -> None:
    """When the only decoder is killed in mid-stream, the stream goes on at its successor, and tells its client what it
    tells without a death. What the dead engine leaves in shared memory is no more there at the end."""
    [decoder] = replicas(launched.root, "Decoder")
    launched.left = mapped(decoder.children(recursive=True))
    assert launched.left
    async with httpx.AsyncClient(base_url=launched.url, timeout=180) as client:
        undisturbed = story_of(await streamed(client, long_stream(), []))
        story = story_of(await streamed(client, long_stream(), [decoder]))
    assert story.is_whole
    assert (story.told, story.usage, len(story.names)) == (undisturbed.told, undisturbed.usage, 1)
    assert replicas(launched.root, "Decoder") != [decoder]

    async def no_zombies() -> bool:
        return all(child.status() != psutil.STATUS_ZOMBIE for child in launched.root.children(recursive=True))

    await until(no_zombies, 4 * MINDING_S, "zombies are left")


def test_ctrl_c_leaves_nothing_behind(launched: Launched) -> None:
    """After Ctrl-C no process of the cluster, none of its shared memory and none of its files is left."""
    family = launched.root.children(recursive=True)
    assert len(family) > 5
    segments = mapped(family)
    assert segments
    launched.process.send_signal(signal.SIGINT)
    assert launched.process.wait(timeout=90) == 0
    assert [process for process in family if process.is_running()] == []
    assert (segments | launched.left) & {path.name for path in Path("/dev/shm").iterdir()} == set()
    assert [*launched.temporary.iterdir()] == []


def test_sigterm_ends_a_start_as_well() -> None:
    """SIGTERM during the start leaves nothing behind."""
    segments = {*Path("/dev/shm").iterdir()}
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        starting = Launched(APP, Path(name))
        try:
            starting.wait_until("pools ready")
            family = starting.root.children(recursive=True)
            assert len(family) > 5
            starting.process.send_signal(signal.SIGTERM)
            assert starting.process.wait(timeout=90) == 0
        finally:
            starting.end()
        assert [process for process in family if process.is_running()] == []
        assert {*Path("/dev/shm").iterdir()} - segments == set()
        assert [*starting.temporary.iterdir()] == []


def mapped(processes: list[psutil.Process]) -> set[str]:
    """Returns the named segments of shared memory that any of the processes maps."""
    segments = {path.name for path in Path("/dev/shm").iterdir()}
    return {name for name in segments if any(holds(process, name) for process in processes)}


def holds(process: psutil.Process, segment: str) -> bool:
    """True if a process maps a segment of shared memory."""
    try:
        return any(region.path == f"/dev/shm/{segment}" for region in process.memory_maps())
    except psutil.NoSuchProcess:
        return False
