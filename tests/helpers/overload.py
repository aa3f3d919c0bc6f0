"""Sends ten times what paced decoders carry, and says what became of goodput, refusals, retries and a small tenant.

python -m tests.helpers.overload goodput --out runs       the peak, then a minute of ten times the peak
python -m tests.helpers.overload tenants --out runs       a small tenant alone, then next to one with 100 times as much

With ``--local``, the Router and the decoders run in this process, without Serve and HAProxy.

The Router, HAProxy, Serve's calls and the routing are real. The decoders sleep: 64 answers at a time, of 20 to 60 steps
with 0.1 s each. The field ``user`` of a request stands for the tenant.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ray.serve.schema import ServeDeploySchema

from cluster.config import DecoderConfig, PrismConfig
from deployments.local.app_file import ApplicationFile
from deployments.local.entries import MEASURED
from deployments.local.launch import running
from loadtest.servers import APP, free_port
from tests.helpers.ask import chat, text
from tests.helpers.closed_loop import paced_content
from tests.helpers.http_surface import here
from tests.helpers.local_router import routed
from tests.helpers.pace import Pace
from tests.helpers.paced import Router
from tests.helpers.paced_engine import PacedEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from cluster.messages import Call, Picture

NUM_SEQUENCES, NUM_TOKENS, STEP_S = 64, 40, 0.1
PACE: Final = {"token_s": 0.00002, "step_s": STEP_S, "max_running": NUM_SEQUENCES}
PEAK_PER_S: Final = NUM_SEQUENCES / (NUM_TOKENS * STEP_S)
TIMEOUT_S: Final = 60.0
MAX_RETRY_WAIT_S: Final = 75.0
"""Clients that are told to wait for longer do not come back within the measurement."""


@dataclass
class Seen:
    """One request as its client saw it; times in seconds since the load began."""

    tenant: str
    sent_s: float
    status: int = 0
    retry_after_s: float | None = None
    status_s: float = 0.0
    first_s: float = 0.0
    end_s: float = 0.0
    is_whole: bool = False
    retry: Seen | None = None

    @property
    def ttft_s(self) -> float:
        """Seconds from the sending to the first event."""
        return self.first_s - self.sent_s


@dataclass
class Load:
    """Sends requests to a cluster.

    Args:
        url: The address of the cluster.
        window_s: The seconds in which requests are sent; retries may come later.
    """

    url: str
    window_s: float
    seen: list[Seen] = field(default_factory=list)
    began_s: float = field(default_factory=time.perf_counter)

    async def open_loop(self, tenant: str, rate_per_s: float, *, retries: bool = False) -> None:
        """Sends requests at random times, however slow the answers are."""
        draw, due_s = random.Random(tenant), 0.0
        tasks: list[asyncio.Task[None]] = []
        while (due_s := due_s + draw.expovariate(rate_per_s)) < self.window_s:
            await asyncio.sleep(max(0.0, due_s - self._now_s()))
            tasks.append(asyncio.create_task(self._ask(tenant, f"{tenant} {len(tasks)}", retries=retries)))
        await asyncio.gather(*tasks)

    async def closed_loop(self, num_in_flight: int) -> None:
        """Keeps a number of requests in flight."""

        async def client(number: int) -> None:
            while self._now_s() < self.window_s:
                await self._ask("", f"peak {number} {self._now_s()}", retries=False)

        await asyncio.gather(*(client(number) for number in range(num_in_flight)))

    def rate_per_s(self, begin_s: float) -> float:
        """The whole answers per second that ended within the window, from a time on."""
        every = [one for first in self.seen for one in (first, first.retry) if one and one.is_whole]
        return sum(begin_s <= one.end_s < self.window_s for one in every) / (self.window_s - begin_s)

    def _now_s(self) -> float:
        return time.perf_counter() - self.began_s

    async def _ask(self, tenant: str, words: str, *, retries: bool) -> None:
        num_tokens = random.Random(words).randint(NUM_TOKENS // 2, NUM_TOKENS * 3 // 2)
        body = json.dumps(chat([text(words)], stream=True, max_tokens=num_tokens, user=tenant)).encode()
        seen = await self._send(tenant, body)
        self.seen.append(seen)
        if retries and seen.retry_after_s is not None and seen.retry_after_s <= MAX_RETRY_WAIT_S:
            await asyncio.sleep(seen.retry_after_s)
            seen.retry = await self._send(tenant, body)

    async def _send(self, tenant: str, body: bytes) -> Seen:
        address, seen = urlsplit(self.url), Seen(tenant, self._now_s())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: prism\r\ncontent-length: {len(body)}\r\n"
                writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
                status = await reader.readuntil(b"\r\n\r\n")
                seen.status, seen.status_s = int(status.split()[1]), self._now_s()
                for line in status.decode().lower().splitlines():
                    if line.startswith("retry-after:"):
                        seen.retry_after_s = float(line.partition(":")[2])
                if seen.status == 200:
                    await reader.readuntil(b"data: ")
                    seen.first_s = self._now_s()
                seen.is_whole = b"[DONE]" in await reader.read() and seen.status == 200
                writer.close()
        except (TimeoutError, OSError, EOFError):
            seen.is_whole = False
        seen.end_s = self._now_s()
        return seen


def overload_file() -> ApplicationFile:
    """The embedded default with one replica of each pool and paced decoders."""
    content = paced_content(PACE)
    [application] = content["applications"]
    application["args"]["decoder"]["max_num_seqs"] = NUM_SEQUENCES
    for entry in application["deployments"]:
        entry["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 1, **MEASURED}
    return replace(ApplicationFile.read(APP), serve=ServeDeploySchema.model_validate(content))


async def measure_goodput(url: str, window_s: float) -> dict[str, Any]:
    """The peak with a closed loop, and a load of ten times the peak with retries."""
    peak = Load(url, 20.0)
    await peak.closed_loop(NUM_SEQUENCES + 16)
    peak_per_s = peak.rate_per_s(8.0)
    load = Load(url, window_s)
    await load.open_loop("", 10 * PEAK_PER_S, retries=True)
    refused = [one for one in load.seen if one.status == 429]
    others = [one for one in load.seen if one.status != 429]
    came_back = [one.retry for one in refused if one.retry]
    in_s = [one.status_s - one.sent_s for one in refused]
    return {
        "peak_per_s": peak_per_s,
        "offered_per_s": len(load.seen) / window_s,
        "goodput_per_s": load.rate_per_s(8.0),
        "statuses": Counter(one.status for one in load.seen),
        "not_whole": sum(not one.is_whole for one in others),
        "refusal_ms": percentiles_ms(in_s),
        "refusals_above_50_ms": sum(one_s > 0.05 for one_s in in_s) / max(1, len(in_s)),
        "retry_after_s": percentiles([one.retry_after_s or 0.0 for one in refused]),
        "came_back": len(came_back),
        "retries": Counter(f"{one.status} {one.is_whole}" for one in came_back),
        "ttft_s": percentiles([one.ttft_s for one in others if one.first_s]),
    }


async def measure_tenants(url: str, window_s: float) -> dict[str, Any]:
    """The time to the first token of a small tenant alone, and next to one that sends 100 times as much."""
    small_per_s = PEAK_PER_S / 10
    alone = Load(url, window_s)
    await alone.open_loop("small", small_per_s)
    both = Load(url, window_s)
    await asyncio.gather(both.open_loop("small", small_per_s), both.open_loop("large", 100 * small_per_s))
    found: dict[str, Any] = {}
    for name, load in (("alone", alone), ("both", both)):
        small = [one for one in load.seen if one.tenant == "small"]
        found[name] = {
            "num": len(small),
            "statuses": Counter(one.status for one in small),
            "ttft_s": percentiles([one.ttft_s for one in small if one.first_s]),
        }
    found["large"] = Counter(one.status for one in both.seen if one.tenant == "large")
    return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest value."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    named = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def percentiles_ms(values_s: Sequence[float]) -> dict[str, float]:
    """The same in milliseconds."""
    return {name: round(1000 * value, 1) for name, value in percentiles(values_s).items()}


MEASURES: Final[dict[str, Callable[[str, float], Coroutine[Any, Any, dict[str, Any]]]]] = {
    "goodput": measure_goodput,
    "tenants": measure_tenants,
}


async def measure_here(what: str, window_s: float) -> dict[str, Any]:
    """Measures a Router and a paced engine in this process."""
    engine: Any = PacedEngine(Pace(**PACE), row_bytes=4)  # type: ignore[arg-type]  # mypy takes all values for one type

    def generate(call: Call, *_: Picture) -> Any:
        return engine.generate(call, {}, {})

    config = PrismConfig(decoder=DecoderConfig(max_num_seqs=NUM_SEQUENCES))
    async with routed(generate, config=config, kind=Router) as (port, _):
        return await MEASURES[what](here(port), window_s)


def main() -> None:
    """Starts the paced cluster, measures, and prints and saves the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--window", type=float, default=60.0, help="seconds of each load")
    parser.add_argument("--local", action="store_true", help="no cluster: all in this process")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.local:
        figures = asyncio.run(measure_here(options.what, options.window))
    else:
        with running(overload_file(), port=free_port()) as cluster:
            figures = asyncio.run(MEASURES[options.what](cluster.url, options.window))
    told = json.dumps(figures, indent=1)
    (options.out / f"overload_{options.what}.json").write_text(told)
    print(told)  # noqa: T201


if __name__ == "__main__":
    main()
