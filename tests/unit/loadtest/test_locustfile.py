"""Locust and the probe against a small server whose times are known."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import re
import socket
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
from loadtest.workload import mix

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    """A server with two models. ``steady`` streams a token every ``GAP_S`` seconds, and ``broken`` goes through
    ``FAULTS``."""

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
            if request["model"] == "steady":
                self.speak(request["max_tokens"])
            else:
                self.fail(FAULTS[next(self.turn) % len(FAULTS)])
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


def locust(server: Server, folder: Path, *words: str) -> Run:
    """Runs Locust headless."""
    done = python(
        "-m", "locust", "-f", LOCUSTFILE, "--host", server.url, "--headless", "--csv", str(folder / "run"), *words
    )
    return Run(done.returncode, done.stdout + done.stderr, folder / "run_stats.csv")


@pytest.fixture(scope="module")
def steady(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The result of a four-second Locust run with four users on the steady model."""
    load = ("--model", "steady", "--max-tokens", str(NUM_TOKENS), "--wait", "0.05", "--pictures", "2")
    return locust(server, tmp_path_factory.mktemp("steady"), "-u", "4", "-r", "4", "-t", "4s", *load)


def test_a_headless_run_reports_the_servers_times(steady: Run) -> None:
    """Locust counts no error and reports each kind of chat with the server's latencies."""
    assert steady.code == 0, steady.output
    rows = {(row["Type"], row["Name"]): row for row in steady.rows()}
    for kind in ("chat text", "chat new picture", "chat seen picture"):
        whole, ttft, itl, tpot = (rows[latency, kind] for latency in ("POST", "TTFT", "ITL", "TPOT"))
        num_answers = int(whole["Request Count"])
        assert num_answers > 0
        assert int(ttft["Request Count"]) == int(tpot["Request Count"]) == num_answers
        assert int(itl["Request Count"]) == num_answers * (NUM_TOKENS - 1)
        assert float(ttft["Min Response Time"]) >= FIRST_S * 1000
        assert float(whole["Min Response Time"]) >= WHOLE_S * 1000
        # One gap can look too short, if the token before it was read late; their sum cannot.
        to_last_token_ms = float(ttft["Average Response Time"]) + float(itl["Average Response Time"]) * (NUM_TOKENS - 1)
        assert to_last_token_ms >= WHOLE_S * 1000
        assert 0.8 * GAP_S * 1000 <= float(itl["Median Response Time"]) <= 3 * GAP_S * 1000
        assert 0.8 * GAP_S * 1000 <= float(tpot["Median Response Time"]) <= 3 * GAP_S * 1000
        assert float(ttft["Median Response Time"]) <= 3 * FIRST_S * 1000


def test_the_total_counts_requests_only(steady: Run) -> None:
    """Latency events are not in the aggregated row, so its rate is that of requests."""
    *rows, total = steady.rows()
    assert total["Name"] == "Aggregated"
    assert int(total["Request Count"]) == sum(int(row["Request Count"]) for row in rows if row["Type"] == "POST")


def test_the_report_has_percentiles_with_decimals(steady: Run) -> None:
    """At its end Locust prints latencies with decimals of a millisecond."""
    _, _, table = steady.output.partition("Latencies of whole answers")
    itl = next(line.split() for line in table.splitlines() if line.startswith("ITL"))
    assert "." in itl[-3]
    assert all(float(figure) > 0.8 * GAP_S * 1000 for figure in itl[-3:])


def test_every_kind_of_failure_is_counted(server: Server, tmp_path: Path) -> None:
    """A bad status, an error event, a missing end, an empty answer and a cut connection are failures, counted by
    cause and by error code."""
    run = locust(server, tmp_path, "-u", "1", "-t", "2s", "--model", "broken", "--wait", "0.01", "TextChatter")
    assert run.code == 1, run.output
    _, _, report = run.output.partition("Error report")  # Locust's last word; its CSV files may be a second behind
    causes = Counter(
        {cause: int(count) for count, cause in re.findall(r"^(\d+) +POST chat text: (.+?) *$", report, re.MULTILINE)}
    )
    assert causes.keys() == FAILURES | {"connection: HTTPParseError"}
    figures = re.findall(r"^(?:POST +chat text|TTFT|ITL|TPOT| +Aggregated) +(\d+) +(\d+)\(", run.output, re.MULTILINE)
    assert figures[-2:] == [(str(causes.total()), str(causes.total()))] * 2


def test_the_web_page_shows_the_latencies(server: Server) -> None:
    """A run that is started from the web page fills the table that the page polls."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = ["-m", "locust", "-f", LOCUSTFILE, "--host", server.url, "--web-host", "127.0.0.1", "--web-port", str(port)]
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, **quiet) as process:
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8), trust_env=False
            ) as page:
                assert "max_tokens" in page.get("/").text
                form = {"user_count": 2, "spawn_rate": 2, "model": "steady", "max_tokens": 2, "wait": 0.1}
                assert page.post("/swarm", data=form).json()["success"]
                rows = wait_for_rows(page, {"POST", "TTFT", "ITL", "TPOT"})
        finally:
            process.terminate()
    itl = next(row for row in rows if row["method"] == "ITL")
    assert itl["median_response_time"] >= 0.8 * GAP_S * 1000
    assert {"response_time_percentile_0.95", "response_time_percentile_0.99"} <= itl.keys()
    assert {request["max_tokens"] for request in server.seen if request["model"] == "steady"} >= {2}


def wait_for_rows(page: httpx.Client, types: set[str]) -> list[dict[str, Any]]:
    """Polls the address that the web page polls until its table has a row for each of these types."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        rows: list[dict[str, Any]] = page.get("/stats/requests").json()["stats"]
        if types <= {row["method"] for row in rows if row["num_requests"]}:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"The page never showed {types}: {rows}")


def test_the_probe_agrees_with_locust(server: Server, steady: Run) -> None:
    """The second client measures the same medians on the same server, and exits with 0."""
    load = ("--model", "steady", "--max-tokens", str(NUM_TOKENS), "--wait", "0.05", "--pictures", "2")
    # Wider than the default, since this machine may be busy with something else in one of the two runs.
    words = ("-m", "loadtest.probe", "--host", server.url, "-u", "4", "--seconds", "1.5", "--tolerance", "0.5")
    done = python(*words, *load, "--compare", str(steady.csv))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": agree") == 6
    assert "0 failures" in done.stdout
    ttft = next(line.split() for line in done.stdout.splitlines() if line.startswith("TTFT"))
    assert float(ttft[-3]) >= FIRST_S * 1000


def test_the_probe_says_when_it_differs(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If Locust's medians differ, the probe exits with 1 and names the figure."""
    stats = tmp_path / "run_stats.csv"
    stats.write_text(f"Type,Name,Median Response Time\nTTFT,chat text,{FIRST_S * 500}\nITL,chat text,{GAP_S * 1000}\n")
    words = [
        "--host",
        server.url,
        "--model",
        "steady",
        "--max-tokens",
        "2",
        "-u",
        "1",
        "--seconds",
        "3",
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
        "-u",
        "1",
        "--seconds",
        "1",
        "--wait",
        "0.02",
    )
    done = python(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    causes = {line.partition(" x ")[2] for line in done.stdout.splitlines() if " x " in line}
    assert causes == FAILURES | {"connection: ClientPayloadError"}


def test_the_probe_deals_users_as_locust_does() -> None:
    """For any number of users, both clients assign the same number to each kind of chat."""
    script = """
import loadtest.locustfile as file
from locust.dispatch import UsersDispatcher
from types import SimpleNamespace
classes = [file.NewPictureChatter, file.SeenPictureChatter, file.TextChatter]
for users in range(1, 25):
    dispatcher = UsersDispatcher([SimpleNamespace(id="worker")], classes)
    dispatcher.new_dispatch(users, 100)
    *_, last = dispatcher
    print({cls.kind: last["worker"][cls.__name__] for cls in classes})
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    theirs = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert len(theirs) == 24
    assert [Counter(mix(users)) for users in range(1, 25)] == [Counter(counts) for counts in theirs]
