"""Locust and the probe against a small server whose times are known."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from loadtest.probe import main
from loadtest.records import read_run
from loadtest.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[3]
LOCUSTFILE = "loadtest/locustfile.py"
FIRST_S, GAP_S, NUM_TOKENS = 0.08, 0.03, 8
WHOLE_S = FIRST_S + GAP_S * (NUM_TOKENS - 1)
FAULTS = ("typed status", "bare status", "error event", "no done", "no text", "malformed", "cut")
FAILURES = {
    "429 overloaded",
    "502 without a typed error",
    "error event: stage_unavailable",
    "no [DONE]",
    "empty answer",
    "malformed event",
}


def sse(event: dict[str, Any] | str) -> bytes:
    """Returns one server-sent event. Non-ASCII characters are not escaped, as in vLLM's streams."""
    return f"data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}\n\n".encode()


def delta(**fields: str) -> dict[str, Any]:
    """Returns a chat chunk with one choice."""
    return {"choices": [{"index": 0, "delta": fields}]}


USAGE = {"choices": [], "usage": {"completion_tokens": NUM_TOKENS}}
ENDING = sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}) + sse(USAGE) + sse("[DONE]")


class Speaker(BaseHTTPRequestHandler):
    """A server with models. ``steady`` streams a token every ``GAP_S`` seconds, ``broken`` goes through ``FAULTS``,
    ``full`` refuses every second request, and ``silent`` sends nothing until the client leaves."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    turn = itertools.count()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/v1/chat/completions"
        assert request["stream"]
        assert request["stream_options"] == {"include_usage": True}
        self.server.seen.append(request)  # type: ignore[attr-defined]
        try:
            turn = next(self.turn)
            if request["model"] == "silent":
                self.rfile.read(1)
            elif request["model"] == "broken":
                self.fail(FAULTS[turn % len(FAULTS)])
            elif request["model"] == "full" and turn % 2:
                self.refuse()
            else:
                self.speak(request["max_tokens"])
        except ConnectionError:
            self.close_connection = True  # Locust drops what is under way when its time is up

    def speak(self, num_tokens: int) -> None:
        self.begin()
        self.write(sse(delta(role="assistant", content="")))
        for token in range(num_tokens):
            event = sse(delta(content="a\u2028é"))
            time.sleep((GAP_S if token else FIRST_S) / 2)
            self.write(event[:-6])  # in the middle of a character
            time.sleep((GAP_S if token else FIRST_S) / 2)
            self.write(event[-6:] + (ENDING if token == num_tokens - 1 else b""))
        self.end()

    def refuse(self) -> None:
        body = b'{"error": {"code": "overloaded", "message": "7 are in flight."}}'
        self.send_response(429)
        self.send_header("retry-after", "1")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, fault: str) -> None:
        if fault.endswith("status"):
            status = 429 if fault == "typed status" else 502
            self.send_response(status)
            body = (
                b'{"error": {"code": "overloaded", "message": "7 are in flight."}}'
                if status == 429
                else b"<h1>Bad gateway</h1>"
            )
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.begin()
        self.write(sse(delta(role="assistant", content="" if fault == "no text" else "A")))
        if fault == "error event":
            self.write(sse({"error": {"code": "stage_unavailable", "message": "gone"}}) + sse("[DONE]"))
        if fault == "malformed":
            self.write(sse("{") + ENDING)
        if fault == "no text":
            self.write(ENDING)
        if fault == "cut":
            self.close_connection = True
        else:
            self.end()

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Server:
    url: str
    seen: list[dict[str, Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A ``Speaker`` on a port of its own."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Speaker)
    http.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield Server(f"http://127.0.0.1:{http.server_address[1]}", http.seen)  # type: ignore[attr-defined]
    http.shutdown()
    thread.join()
    http.server_close()


@dataclass
class Run:
    code: int
    output: str
    csv: Path

    @property
    def is_well(self) -> bool:
        """True unless something failed. On a busy machine Locust may be late, which has a test of its own."""
        return self.code == 0 or (self.code == 2 and "This run is void: the p99 of the lag" in self.output)

    def limit_ms(self, latency_s: float) -> float:
        """The most that may be measured for a latency of the server. A run that was late has no limit."""
        return 3 * latency_s * 1000 if self.code == 0 else math.inf

    def rows(self) -> list[dict[str, str]]:
        with self.csv.open(newline="") as file:
            return list(csv.DictReader(file))


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python in the repository's folder and kills it after a minute."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def locust(server: Server, folder: Path, *words: str, file: str = LOCUSTFILE) -> Run:
    """Runs Locust headless."""
    done = python("-m", "locust", "-f", file, "--host", server.url, "--headless", "--csv", str(folder / "run"), *words)
    return Run(done.returncode, done.stdout + done.stderr, folder / "run_stats.csv")


def two_workers() -> list[str]:
    """The words of a command line with two workers, at a port of their own."""
    port = str(free_port())
    return ["--processes", "2", "--master-bind-port", port, "--master-port", port]


def write_schedule(path: Path, *arrivals: dict[str, Any]) -> Path:
    """Writes a schedule of short texts, with what else the arrivals have."""
    sizes = {"client": "c", "text_tokens": 5, "output_tokens": 2}
    lines = [{"source": "test", "seed": 1, "duration_s": 10}, *({**sizes, **arrival} for arrival in arrivals)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def steady(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The result of a three-second Locust run on the steady model."""
    load = ("--model", "steady", "--max-tokens", str(NUM_TOKENS), "--rate", "16", "--pictures", "2")
    return locust(server, tmp_path_factory.mktemp("steady"), "-t", "3s", *load)


def test_a_headless_run_reports_the_servers_times(steady: Run) -> None:
    """Locust counts no error and reports each kind of chat with the server's latencies."""
    assert steady.is_well, steady.output
    rows = {(row["Type"], row["Name"]): row for row in steady.rows()}
    for kind in ("chat text", "chat new picture", "chat seen picture"):
        whole, ttft, scheduled, icl, itl = (
            rows[latency, kind] for latency in ("POST", "TTFT", "TTFT scheduled", "ICL", "ITL")
        )
        num_answers = int(whole["Request Count"])
        assert num_answers > 0
        assert {int(row["Request Count"]) for row in (ttft, scheduled, itl)} == {num_answers}
        assert int(icl["Request Count"]) == num_answers * (NUM_TOKENS - 1)
        assert float(ttft["Min Response Time"]) >= FIRST_S * 1000
        assert float(scheduled["Average Response Time"]) > float(ttft["Average Response Time"])
        assert float(whole["Min Response Time"]) >= WHOLE_S * 1000
        # One gap can look too short, if the token before it was read late; their sum cannot.
        to_last_token_ms = float(ttft["Average Response Time"]) + float(icl["Average Response Time"]) * (NUM_TOKENS - 1)
        assert to_last_token_ms >= WHOLE_S * 1000
        assert 0.8 * GAP_S * 1000 <= float(icl["Median Response Time"]) <= steady.limit_ms(GAP_S)
        assert 0.8 * GAP_S * 1000 <= float(itl["Median Response Time"]) <= steady.limit_ms(GAP_S)
        assert float(ttft["Median Response Time"]) <= steady.limit_ms(FIRST_S)


def test_the_total_counts_requests_only(steady: Run) -> None:
    """Latency events are not in the aggregated row, so its rate is that of requests. Each request has a lag."""
    *rows, total = steady.rows()
    assert total["Name"] == "Aggregated"
    num_requests = sum(int(row["Request Count"]) for row in rows if row["Type"] == "POST")
    assert int(total["Request Count"]) == num_requests
    assert next(int(row["Request Count"]) for row in rows if row["Type"] == "Lag") == num_requests


def test_the_report_has_percentiles_with_decimals(steady: Run) -> None:
    """At its end Locust prints latencies with decimals of a millisecond."""
    _, _, table = steady.output.partition("Latencies of whole answers")
    itl = next(line.split() for line in table.splitlines() if line.startswith("ITL"))
    assert "." in itl[-3]
    assert all(float(figure) > 0.8 * GAP_S * 1000 for figure in itl[-3:])


def test_every_kind_of_failure_is_counted(server: Server, tmp_path: Path) -> None:
    """A bad status, an error event, a missing end, an empty answer and a cut connection are failures, counted by
    cause and by error code."""
    schedule = write_schedule(tmp_path / "s.jsonl", *({"at_s": number / 50} for number in range(21)))
    run = locust(server, tmp_path, "--model", "broken", "--schedule", str(schedule))
    assert run.code in (1, 2), run.output
    _, _, report = run.output.partition("Error report")  # Locust's last word; its CSV files may be a second behind
    causes = Counter(
        {cause: int(count) for count, cause in re.findall(r"^(\d+) +POST chat text: (.+?) *$", report, re.MULTILINE)}
    )
    assert causes.keys() == FAILURES | {"connection: HTTPParseError"}
    figures = re.findall(r"^(?:POST +chat text|TTFT|ICL|ITL|  +Aggregated) +(\d+) +(\d+)\(", run.output, re.MULTILINE)
    assert figures[-2:] == [("21", "21")] * 2


def test_refused_requests_are_no_failures(server: Server, tmp_path: Path) -> None:
    """429 with ``Retry-After`` has rows of its own, outside the total, and is no reason for an exit code of 1."""
    record = tmp_path / "run.jsonl"
    schedule = write_schedule(tmp_path / "s.jsonl", *({"at_s": number / 50} for number in range(20)))
    run = locust(server, tmp_path, "--model", "full", "--schedule", str(schedule), "--record", str(record))
    assert run.is_well, run.output
    assert Counter(one.outcome for one in read_run(record).records) == {"answered": 10, "refused": 10}
    assert {one.cause for one in read_run(record).records} == {"", "429 overloaded"}
    assert re.search(r"^Refused +chat text +10 +0\(", run.output, re.MULTILINE)
    assert re.search(r"^ +Aggregated +10 +0\(", run.output, re.MULTILINE)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_schedule_is_replayed_once(server: Server, tmp_path: Path, num_processes: int) -> None:
    """However many workers share it, each arrival is sent once at its time, later turns come with the answers before
    them, and the run ends by itself."""
    record, server.seen[:] = tmp_path / "run.jsonl", []
    turns = [{"at_s": 0.1 * turn, "conversation": "x", "turn": turn, "output_tokens": 9} for turn in range(3)]
    others = [{"at_s": 0.3 + number / 20, "text_tokens": 20 + number} for number in range(12)]
    schedule = write_schedule(tmp_path / "s.jsonl", *turns, *others)
    words = ("--schedule", str(schedule), "--record", str(record), "--model", "steady")
    run = locust(server, tmp_path, *words, *(two_workers() if num_processes == 2 else ()))
    assert run.is_well, run.output
    records = read_run(record).records
    assert {one.index: one.outcome for one in records} == dict.fromkeys(range(15), "answered")
    assert all(one.at_s == pytest.approx(0.3 + (one.index - 3) / 20) for one in records if one.index > 2)
    first, second, third = (next(one for one in records if one.index == index) for index in range(3))
    # The server takes longer for an answer than the schedule gives it, so the later turns wait.
    assert first.at_s == pytest.approx(0.0, abs=1e-5)
    for earlier, later in ((first, second), (second, third)):
        assert later.at_s == pytest.approx(earlier.end_s, abs=0.02 if run.code == 0 else 2.0)
    talks = [[one["role"] for one in each["messages"]] for each in server.seen if each["max_tokens"] == 9]
    assert talks == [["user", "assistant"] * number + ["user"] for number in range(3)]
    assert len(server.seen) == 15


def test_what_has_not_ended_is_recorded(server: Server, tmp_path: Path) -> None:
    """A request that is under way when the run ends is neither an answer nor a failure."""
    record = tmp_path / "run.jsonl"
    schedule = write_schedule(tmp_path / "s.jsonl", {"at_s": 0.0})
    words = ("--model", "silent", "--schedule", str(schedule), "--record", str(record))
    run = locust(server, tmp_path, *words, "-t", "3s", "--drain", "1")
    assert run.is_well, run.output
    assert [one.outcome for one in read_run(record).records] == ["unfinished"]


def test_a_slow_generator_makes_the_run_void(server: Server, tmp_path: Path) -> None:
    """If Locust itself is blocked for 50 ms again and again, it exits with 2 and says why."""
    slow = tmp_path / "slow.py"
    slow.write_text("""
import time
import gevent
from locust import events
from loadtest.locustfile import *

def block():
    while True:
        gevent.sleep(0.05)
        end_s = time.perf_counter() + 0.05
        while time.perf_counter() < end_s:
            pass

events.test_start.add_listener(lambda **_: gevent.spawn(block))
""")
    schedule = write_schedule(tmp_path / "s.jsonl", *({"at_s": number / 100} for number in range(30)))
    words = ("--model", "steady", "--schedule", str(schedule))
    run = locust(server, tmp_path, *words, file=str(slow))
    assert run.code == 2, run.output
    assert "This run is void: the p99 of the lag" in run.output


def test_a_wrong_schedule_ends_locust(server: Server, tmp_path: Path) -> None:
    """The message names the line and the field, and nothing is sent."""
    schedule = write_schedule(tmp_path / "s.jsonl", {"at_s": 0.0, "output_tokens": 0})
    server.seen.clear()
    run = locust(server, tmp_path, "--schedule", str(schedule))
    assert run.code == 2
    assert "line 2: output_tokens: it must be a whole number from 1 on, not 0" in run.output
    assert not server.seen


def test_the_web_page_starts_the_schedule_again(server: Server, tmp_path: Path) -> None:
    """A run of two workers that is started from the web page fills the table that the page polls, and ends with the
    schedule. The next start sends the schedule again from its beginning. A schedule that is missing ends the run."""
    port = free_port()
    schedule = write_schedule(tmp_path / "s.jsonl", *({"at_s": number / 20} for number in range(5)))
    words = ["-m", "locust", "-f", LOCUSTFILE, "--host", server.url, "--web-host", "127.0.0.1", "--web-port", str(port)]
    words += two_workers()
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, **quiet) as process:
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8), trust_env=False
            ) as page:
                assert "max_tokens" in page.get("/").text
                wait_for(page, lambda state: len(state.get("workers", ())) == 2)
                form = {"user_count": 1, "spawn_rate": 1, "model": "steady", "schedule": str(tmp_path / "none")}
                assert page.post("/swarm", data=form).json()["success"]
                wait_for(page, lambda state: state["state"] == "stopped" and state["worker_count"] == 2)
                for num_runs in (1, 2):
                    server.seen[:] = []
                    form["schedule"] = str(schedule)
                    assert page.post("/swarm", data=form).json()["success"], num_runs
                    rows = wait_for(page, lambda state: has_ended(state, server))
                    assert len(server.seen) == 5
        finally:
            process.terminate()
    assert rows.keys() == {"POST", "TTFT", "TTFT scheduled", "ICL", "ITL", "Lag"}
    icl = rows["ICL"]
    assert icl["num_requests"] == 5
    assert icl["median_response_time"] >= 0.8 * GAP_S * 1000
    assert {"response_time_percentile_0.95", "response_time_percentile_0.99"} <= icl.keys()


def rows_of(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the page's table by type, when every request of the run is in them."""
    rows = {row["method"]: row for row in state["stats"] if row["method"] and row["num_requests"]}
    return rows if rows.get("POST", {}).get("num_requests") == 5 else {}


def has_ended(state: dict[str, Any], server: Server) -> bool:
    """True if a run of five requests has stopped and the table has its figures."""
    return len(server.seen) >= 5 and state["state"] == "stopped" and len(rows_of(state)) == 6


def wait_for(page: httpx.Client, condition: Callable[[dict[str, Any]], bool]) -> dict[str, dict[str, Any]]:
    """Polls the address that the web page polls until a condition holds, and returns the rows of its table."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        state: dict[str, Any] = page.get("/stats/requests").json()
        if condition(state):
            return rows_of(state)
        time.sleep(0.05)
    raise AssertionError(f"The page never showed it: {state}")


def test_the_probe_agrees_with_locust(server: Server, steady: Run) -> None:
    """The second client measures the same medians on the same server, and exits with 0."""
    load = ("--model", "steady", "--max-tokens", str(NUM_TOKENS), "--rate", "16", "--pictures", "2", "--seed", "1")
    # Wider than the default, since this machine may be busy with something else in one of the two runs.
    words = ("-m", "loadtest.probe", "--host", server.url, "--seconds", "1.5", "--tolerance", "0.5")
    done = python(*words, *load, "--compare", str(steady.csv))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": agree") == 6
    assert "0 failures" in done.stdout
    ttft = next(line.split() for line in done.stdout.splitlines() if line.startswith("TTFT"))
    assert float(ttft[-3]) >= FIRST_S * 1000


def test_the_probe_says_when_it_differs(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If Locust's medians differ, the probe exits with 1 and names the figure."""
    stats = tmp_path / "run_stats.csv"
    stats.write_text(f"Type,Name,Median Response Time\nTTFT,chat text,{FIRST_S * 500}\nICL,chat text,{GAP_S * 1000}\n")
    words = [
        "--host",
        server.url,
        "--model",
        "steady",
        "--max-tokens",
        "2",
        "--rate",
        "20",
        "--seconds",
        "0.5",
        "--tolerance",
        "0.9",
    ]
    assert main([*words, "--compare", str(stats)]) == 1
    assert re.search(r"TTFT +chat text .*: DIFFER", capsys.readouterr().out)


def test_the_probe_counts_the_same_failures(server: Server) -> None:
    """Each fault is a failure in the second client too, and its exit code is 1."""
    words = (
        "-m",
        "loadtest.probe",
        "--host",
        server.url,
        "--model",
        "broken",
        "--rate",
        "40",
        "--seconds",
        "1",
    )
    done = python(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    causes = {line.partition(" x ")[2] for line in done.stdout.splitlines() if " x " in line}
    assert causes == FAILURES | {"connection: ClientPayloadError"}
