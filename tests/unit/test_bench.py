"""The side-by-side benchmark's own arithmetic, against oracles; its client against a server whose times are known."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from aiohttp import web
from PIL import Image

from cluster.config import PrismConfig
from loadtest.bench import asks
from loadtest.bench.__main__ import DEMO
from loadtest.bench.__main__ import main as bench
from loadtest.bench.asks import Request, bursts, letters, new_picture, steady, windows
from loadtest.bench.binding import bind
from loadtest.bench.figures import BARS, Bar, judge, short, spread
from loadtest.bench.load import Client, Sample
from loadtest.bench.results import Record, table
from loadtest.bench.systems import Setup, free_port, prism_changes, process
from loadtest.bench.workloads import WORKLOADS, Writer, encoding, gaps, latencies, stalls, throughput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

FIRST_S, GAP_S = 0.05, 0.02


def sample(start_s: float, texts_s: tuple[float, ...], *, kind: str = "text", num_tokens: int | None = None) -> Sample:
    """A whole answer with text at these times."""
    return Sample(kind, num_tokens or len(texts_s), start_s, texts_s, texts_s[-1])


def random_samples(rng: random.Random, count: int) -> list[Sample]:
    """Answers of 1 to 9 events at random times."""
    samples = []
    for _ in range(count):
        start_s = rng.uniform(0, 10)
        times_s = sorted(rng.uniform(start_s, start_s + 2) for _ in range(rng.randrange(1, 10)))
        samples.append(sample(start_s, tuple(times_s)))
    return samples


@pytest.mark.parametrize("seed", range(20))
def test_latencies_equal_numpys(seed: int) -> None:
    """Medians, means and nearest-rank percentiles are those that numpy finds."""
    samples = random_samples(random.Random(seed), 40)
    ttft_ms = np.array([(each.texts_s[0] - each.start_s) * 1000 for each in samples])
    found = latencies(samples)
    assert found["TTFT p50, ms"] == pytest.approx(np.median(ttft_ms))
    assert found["TTFT mean, ms"] == pytest.approx(ttft_ms.mean())
    assert found["TTFT p90, ms"] == pytest.approx(np.sort(ttft_ms)[36])
    per_token_ms = [np.diff(each.texts_s).mean() * 1000 if len(each.texts_s) > 1 else 0.0 for each in samples]
    assert found["ITL, ms"] == pytest.approx(np.mean(per_token_ms))


@pytest.mark.parametrize("seed", range(20))
def test_gaps_equal_numpys(seed: int) -> None:
    """The gaps of all streams together have numpy's percentiles, and the worst is the largest."""
    samples = random_samples(random.Random(seed), 300)
    every_ms = np.sort(np.concatenate([np.diff(each.texts_s) for each in samples])) * 1000
    found = gaps(samples)
    assert found["gap worst, ms"] == pytest.approx(every_ms[-1])
    assert found["gap p99, ms"] == pytest.approx(every_ms[int(len(every_ms) * 0.99)])
    assert found["gap p99.9, ms"] == pytest.approx(every_ms[int(len(every_ms) * 0.999)])


def test_stalls_are_counted_on_text_alone() -> None:
    """A picture's own gaps do not count; those of the text beside it do, over those without pictures."""
    alone = [sample(0.0, (0.1, 0.2, 0.3))]
    together = [sample(0.0, (0.1, 0.4, 0.5)), sample(0.0, (1.0, 9.0), kind="picture")]
    found = stalls({"alone": alone, "with pictures": together})
    assert found["gap worst ×"] == pytest.approx(3.0)
    assert found["gap worst, ms, with pictures"] == pytest.approx(300.0)
    assert found["picture TTFT p50, ms"] == pytest.approx(1000.0)


def test_throughput_counts_from_the_first_request_to_the_last_answer() -> None:
    """Three answers between 1 s and 3 s are 1.5 a second."""
    assert throughput([sample(1.0, (1.5,)), sample(2.0, (2.5,)), sample(1.2, (3.0,))]) == {"requests/s": 1.5}


def test_an_answer_that_comes_at_once_is_seen() -> None:
    """Several tokens in one event, or in events of one moment, are counted; a single token is not."""
    samples = [sample(0.0, (0.1,), num_tokens=16), sample(0.0, (0.1, 0.101)), sample(0.0, (0.1,)), sample(0.0, (0.1, 0.2))]
    assert latencies(samples)["answers at once, %"] == 50.0


def test_a_picture_costs_what_it_takes_more_the_first_time() -> None:
    """80 ms more for new pictures are 20 decode steps, if 32 tokens more take 128 ms."""
    found = encoding({"new": [sample(0.0, (0.1,))], "again": [sample(0.0, (0.02,))], "long": [sample(0.0, (0.02, 0.148))]})
    assert found["one picture, decode steps"] == pytest.approx(20.0)


def test_schedules_are_what_they_say() -> None:
    """Steady arrivals stop before the end; a burst counts from its start."""
    assert steady(4.0, 1.0) == [0.0, 0.25, 0.5, 0.75]
    assert steady(2.0, 0.6) == [0.0, 0.5]
    assert steady(2.0, 0.0) == []
    assert bursts([1.0, 7.0], 3, 4.0) == [1.0, 1.25, 1.5, 7.0, 7.25, 7.5]


def test_windows_slide_by_one() -> None:
    """Each turn keeps all but the oldest picture and adds a new one."""
    turns = windows([b"a", b"b", b"c", b"d", b"e"], 3, 3)
    assert turns == [(b"a", b"b", b"c"), (b"b", b"c", b"d"), (b"c", b"d", b"e")]
    with pytest.raises(ValueError, match="take 5 pictures, not 4"):
        windows([b"a", b"b", b"c", b"d"], 3, 3)


@pytest.mark.parametrize("size", [(224, 168), (448, 448)])
def test_new_pictures_are_new_and_the_same_for_a_seed(size: asks.Size) -> None:
    """Fifty pictures differ, have their size, and come again from the same seed."""
    rng = random.Random(7)
    pictures = [new_picture(rng, size) for _ in range(50)]
    assert len(set(pictures)) == 50
    assert pictures[0] == new_picture(random.Random(7), size)
    assert Image.open(io.BytesIO(pictures[0])).size == size


def test_letters_are_letters() -> None:
    """In the demo's vocabulary there are 52 tokens of one letter."""
    vocabulary = {
        number: token for token, number in json.loads((DEMO / "tokenizer.json").read_text())["model"]["vocab"].items()
    }
    found = [vocabulary[number] for number in letters(DEMO)]
    assert len(found) == 52
    assert all(len(token) == 1 and token.isalpha() and token.isascii() for token in found)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_every_system_gets_the_same_bytes(workload: Any) -> None:
    """Two writers with one seed write the same requests, and no new picture stands in two phases of a latency workload."""
    if workload.name.startswith("preprocess"):
        pytest.skip("large pictures take seconds to draw")

    def requests() -> list[Request]:
        phases = workload.phases(Writer(random.Random("seed"), [1, 2], quick=True))
        return [request for phase in phases for queue in (*phase.queues, phase.schedule) for request in queue]

    written = requests()
    assert written == requests()
    assert written != workload.phases(Writer(random.Random("other"), [1, 2], quick=True))
    for request in written:
        assert json.loads(request.body)["min_tokens"] == request.num_tokens


def test_four_pictures_of_five_were_in_the_request_before() -> None:
    """In the sliding window each user's request shares four of five pictures with that user's last, and none with others'."""
    [workload] = [each for each in WORKLOADS if each.name == "windows"]
    first, rest = workload.phases(Writer(random.Random(1), [1], quick=True))
    users = [(*begin, *later) for begin, later in zip(first.queues, rest.queues, strict=True)]
    seen: set[str] = set()
    for requests in users:
        pictures = [pictures_of(request) for request in requests]
        assert all(len(each) == 5 for each in pictures)
        assert all(len(set(before) & set(after)) == 4 for before, after in itertools.pairwise(pictures))
        mine = {picture for each in pictures for picture in each}
        assert not mine & seen
        seen |= mine


def pictures_of(request: Request) -> list[str]:
    """The URLs of a request's pictures."""
    parts = json.loads(request.body)["messages"][0]["content"]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def test_a_picture_can_stand_after_the_words() -> None:
    """With the text first, prefix caches cannot hold the picture's tokens."""
    content = json.loads(asks.body("hello", [b"jpeg"], 1, [5], text_first=True))["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url"]
    assert content[1]["image_url"]["url"].endswith(base64.b64encode(b"jpeg").decode())


def test_bars_compare_medians() -> None:
    """A difference and a ratio are taken of the medians over repeats, and held against the limit."""
    results = {"text": {"prism": {"t": [9.0, 50.0, 11.0]}, "vllm": {"t": [8.0, 7.0, 1.0]}}}
    places = (("text", "prism", "t"), ("text", "vllm", "t"))
    difference = judge(Bar(1, places[0], "≤", 4.0, "−", places[1]), results)
    assert (difference.value, difference.holds) == (4.0, True)
    ratio = judge(Bar(1, places[0], "<", 1.5, "÷", places[1]), results)
    assert ratio.value == pytest.approx(11 / 7)
    assert ratio.holds is False
    alone = judge(Bar(1, places[0], "≥", 11.0), results)
    assert (alone.value, alone.holds) == (11.0, True)


def test_a_bar_without_figures_is_not_judged() -> None:
    """Where a system was not measured, a bar neither holds nor fails."""
    for bar in BARS:
        assert judge(bar, {}).holds is None
        assert judge(bar, {bar.figure[0]: {bar.figure[1]: {bar.figure[2]: [1.0]}}}).holds is (None if bar.beside else True)


def test_bars_speak_of_figures_that_there_are() -> None:
    """Each bar's figures are made by its workload, and measured for the systems that it names."""
    by_name = {workload.name: workload for workload in WORKLOADS}
    answers = [sample(0.0, (0.1, 0.2, 0.3)), sample(0.0, (0.1, 0.2), kind="picture")]
    names = ("text", "picture", "alone", "with pictures", "new", "again")
    for bar in BARS:
        for place in (bar.figure, bar.beside):
            if place is not None:
                workload = by_name[place[0]]
                assert place[1] in workload.systems
                phases = ["window"] if place[0] == "windows" else ["picture"] if "requests" in place[2] else names
                assert place[2] in workload.figures(dict.fromkeys(phases, answers))


def test_medians_stand_with_their_range() -> None:
    """One value stands alone; more have their range; three digits count."""
    assert spread([12.345]) == "12.3"
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00–3.00)"
    assert [short(value) for value in (0, 0.01234, 99.94, 1234.5, -20.26)] == ["0", "0.012", "99.9", "1234", "-20.3"]
    rows = table({"a": {"x": [1.0]}, "b": {"x": [2.0], "y": [3.0]}})
    assert rows == ["| | a | b |", "|---|---|---|", "| x | 1.00 | 2.00 |", "| y | – | 3.00 |"]


def test_prism_accepts_what_the_bench_changes() -> None:
    """Every set-up's changes are keys of the configuration, and what they reserve fits two cores."""
    for setup in {workload.setup for workload in WORKLOADS} | {Setup("all", "demo", (0, 1), 0, 2)}:
        config = PrismConfig.model_validate(prism_changes(setup, DEMO))
        assert sum(pool.num_replicas * pool.resources.num_cpus for pool in config.pools) <= 2
        assert config.decoder.num_replicas == setup.num_engines


PLAYED = """
exec -a VLLM::Worker sleep 60 &
exec -a VLLM::Worker sleep 60 &
exec -a ray::ServeReplica:prism:VisionEncoder sleep 60 &
exec -a ray::ServeReplica:prism:Router sleep 60 &
echo up; wait
"""
"""A system as far as its processes' titles go."""


@pytest.fixture
def played() -> Iterator[psutil.Process]:
    """``PLAYED``, until the test ends."""
    with subprocess.Popen(["bash", "-c", PLAYED], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        process = psutil.Process(shell.pid)
        children = process.children()
        deadline_s = time.monotonic() + 10
        while any("exec" in " ".join(child.cmdline()) for child in children) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        yield process
        for child in children:
            child.kill()


@pytest.mark.skipif(psutil.cpu_count() == 1, reason="needs two cores to tell them apart")
def test_engines_and_the_encoder_are_put_on_their_cores(played: psutil.Process) -> None:
    """Each engine gets its core and the encoder its own; everything else keeps the cores that it had."""
    bind([played], engine_cores=(0, 1), encoder_core=0)
    cores = {child.pid: (child.cmdline()[0], set(child.cpu_affinity())) for child in played.children()}
    [first, second] = (cores[pid][1] for pid in sorted(cores) if cores[pid][0] == "VLLM::Worker")
    [encoder] = (where for title, where in cores.values() if "VisionEncoder" in title)
    [router] = (where for title, where in cores.values() if "Router" in title)
    assert (first, second, encoder) == ({0}, {1}, {0})
    assert router == set(psutil.Process().cpu_affinity())


def test_a_system_with_other_engines_than_expected_is_not_measured(played: psutil.Process) -> None:
    """One engine too many is an error that names what is there."""
    with pytest.raises(RuntimeError, match=r"2 engines were found for cores \[1\]; there is .*Router"):
        bind([played], engine_cores=(1,), encoder_core=None)


def test_a_server_is_gone_after_its_block(tmp_path: Path) -> None:
    """A server is waited for, and neither it nor a child that ignores Ctrl-C is left when the block ends."""
    port = free_port()
    script = f"sleep 300 & exec {sys.executable} -m http.server {port} --bind 127.0.0.1"
    with process(["bash", "-c", script], dict(os.environ), tmp_path / "log", port, ready="/") as server:
        [child] = server.children()
        assert child.is_running()
    assert not server.is_running()
    assert not child.is_running()


def test_shared_memory_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    """A segment that a child maps is gone after the block, though nobody unlinked it."""
    port = free_port()
    hold = "import time; from multiprocessing.shared_memory import SharedMemory as M"
    child = f"{hold}; m = M(create=True, size=64); print(m.name, flush=True); time.sleep(300)"
    script = f'{sys.executable} -c "{child}" > {tmp_path}/name & exec {sys.executable} -m http.server {port} --bind 127.0.0.1'
    with process(["bash", "-c", script], dict(os.environ), tmp_path / "log", port, ready="/"):
        deadline_s = time.monotonic() + 20
        while not (name := (tmp_path / "name").read_text().strip()) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert Path("/dev/shm", name).exists()
    assert not Path("/dev/shm", name).exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The error holds the end of the log."""
    with (
        pytest.raises(RuntimeError, match=r"ended with 3:\nno such model"),
        process(["bash", "-c", "echo no such model; exit 3"], dict(os.environ), tmp_path / "log", free_port()),
    ):
        pass


async def answer(request: web.Request) -> web.StreamResponse:
    """Speaks as many letters as asked for, with known gaps; a question about trouble gets it."""
    body = await request.json()
    num_tokens = body["max_tokens"]
    trouble = body["messages"][0]["content"]
    if trouble == "refuse":
        return web.json_response({"error": {"code": "overloaded"}}, status=429)
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)

    async def say(event: Any) -> None:
        await stream.write(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n")

    await say({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    for number in range(num_tokens - (trouble == "short")):
        await asyncio.sleep(GAP_S if number else FIRST_S)
        await say({"choices": [{"delta": {"content": "a"}}]})
    if trouble == "error":
        await say({"error": {"code": "gone"}})
    if trouble != "cut":
        await say({"choices": [], "usage": {"completion_tokens": num_tokens}})
        await say(b"[DONE]")
    return stream


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Where ``answer`` listens."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def ask(text: str = "hello", at_s: float = 0.0) -> Request:
    """A question for ``answer``."""
    return Request("text", asks.body(text, [], 4, [1]), 4, at_s)


async def test_the_client_sees_the_servers_times(url: str) -> None:
    """TTFT is at least what the server waits, the last text comes no sooner than it can, and the times add up."""
    async with Client(url) as client:
        samples = await client.closed_loop([[ask() for _ in range(6)]], users_per_queue=2)
    assert [each.failure for each in samples] == [""] * 6
    assert all(each.ttft_s >= FIRST_S and len(each.gaps_s) == 3 for each in samples)
    assert all(each.ttft_s + sum(each.gaps_s) >= FIRST_S + 3 * GAP_S for each in samples)
    assert all(each.ttft_s + sum(each.gaps_s) <= each.total_s for each in samples)
    assert all(each.tpot_s == pytest.approx(sum(each.gaps_s) / 3) for each in samples)


async def test_an_open_loop_counts_from_when_a_request_was_due(url: str) -> None:
    """Requests go out at their times, whether or not earlier ones are done, and each counts from its own time."""
    async with Client(url) as client:
        samples = await client.open_loop([ask(at_s=at_s) for at_s in (0.0, 0.01, 0.02)])
    assert [each.start_s for each in samples] == [0.0, 0.01, 0.02]
    assert samples[2].texts_s[0] < samples[0].done_s
    assert all(each.ttft_s >= FIRST_S for each in samples)


async def test_an_answer_that_is_not_whole_is_a_failure(url: str) -> None:
    """A refusal, too few letters, an error event and a missing end each fail with their cause."""
    async with Client(url) as client:
        samples = await client.closed_loop([[ask("refuse"), ask("short"), ask("error"), ask("cut")]], users_per_queue=1)
    refused, short_of, error, cut = (each.failure for each in samples)
    assert refused.startswith("429")
    assert short_of == "4 tokens with 3 letters instead of 4"
    assert "gone" in error
    assert cut == "no [DONE]"


def test_a_record_becomes_a_report(tmp_path: Path) -> None:
    """The files are written, failures and notes are in them, and a plot is a picture."""
    record = Record({"date": "today"})
    by_name = {workload.name: workload for workload in WORKLOADS}
    rng = random.Random(3)
    for system in ("prism", "vllm"):
        record.add(by_name["text"], system, {"text": random_samples(rng, 20)})
        record.add(by_name["saturation"], system, {"picture": random_samples(rng, 20)})
        pictures = [sample(0.0, (0.5, 0.6), kind="picture")]
        phases = {"alone": random_samples(rng, 50), "with pictures": random_samples(rng, 50) + pictures}
        record.add(by_name["bursts"], system, phases)
    record.add(by_name["text"], "ray-serve-llm", {"text": [Sample("text", 4, 0.0, (), 1.0, "no [DONE]")]})
    record.write(tmp_path, WORKLOADS)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["failures"] == {"text, ray-serve-llm": {"no [DONE]": 1}}
    assert len(content["figures"]["text"]["prism"]["TTFT p50, ms"]) == 1
    assert len(content["bars"]) == len(BARS)
    report = (tmp_path / "results.md").read_text()
    assert "text, ray-serve-llm: 1 × no [DONE]" in report
    assert "| 6 | bursts: gap worst ×, prism ≤ 1.5 |" in report
    for name in ("ttft.png", "gaps.png", "rates.png"):
        with Image.open(tmp_path / name) as plot:
            assert plot.size[0] > 400


@pytest.mark.parametrize("words", [["--only", "nothing"], ["--systems", "prism,other"], ["--repeats", "0"]])
def test_a_wrong_command_line_says_so(words: list[str]) -> None:
    """An unknown name or a number that makes no sense ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        bench(words)
    assert ended.value.code == 2
