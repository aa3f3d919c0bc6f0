"""Runs loads against a paced cluster whose pools are scaled by the real Serve controller, and judges what happened.

python -m tests.helpers.closed_loop --seeds 20 --out runs        the long proof: a table, and a plot per run
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

import httpx
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.local.app_file import ApplicationFile
from deployments.local.entries import MEASURED
from deployments.local.launch import running
from deployments.ray_serve.session import deploy
from loadtest.servers import APP, changed_app, free_port
from tests.helpers.ask import chat, image, random_png, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deployments.local.launch import Cluster

Kind = Literal["pictures", "long text", "slow preprocessors"]
"""The kinds of loads. The first two have a spike of such requests. The last one has no spike: for a while,
preprocessors need five times as long for each picture."""
Policy = Literal["joint", "serve"]
KINDS: Final = get_args(Kind)
POOLS: Final = ("Router", "Preprocessor", "VisionEncoder", "Decoder")
MAX_REPLICAS: Final = 6
WINDOW_S: Final = 20.0
LENGTHS_S: Final = (20.0, 25.0, 30.0)
"""How long a load lasts before its spike, in it, and after it."""
SETTLE_S: Final = 180.0
"""How long all pools may take to come back down after a load."""
RAISED_S: Final = 5.0
"""The target of the pool that is short must rise within this time after a spike begins. Slow preprocessors may take as
long as they are slow, because their speed is learnt from their work."""
SLOWNESS: Final = 5.0
LONG_TEXT_CHARS: Final = 15_000
SIDE_PIXELS: Final = 84
MAX_TOKENS: Final = 20
SAMPLE_S: Final = 0.5
TOLD_START_S: Final = 5.0
"""The time of a start that the policy is told. It learns the real one."""
SHRUNK: Final = 1


@dataclass(frozen=True)
class Load:
    """One load: what it is made of, and its arrivals, as seconds and whether each belongs to the spike."""

    kind: Kind
    seed: int
    factor: float
    arrivals: tuple[tuple[float, bool], ...]
    before_s: float
    spike_s: float

    @classmethod
    def random(
        cls, seed: int, lengths_s: tuple[float, float, float] = LENGTHS_S, *, factor: float | None = None
    ) -> Self:
        """The load of a seed: about one request per second, and ``factor`` or 2 to 12 times as many in the spike."""
        draw = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        before_s, spike_s, after_s = lengths_s
        drawn = 1.0 if kind == "slow preprocessors" else draw.uniform(*((4, 12) if kind == "pictures" else (2, 6)))
        factor = factor or drawn
        ends_s = before_s + spike_s
        spans = ((0.0, before_s, 1.0), (before_s, ends_s, factor), (ends_s, ends_s + after_s, 1.0))
        base = 0.8 if kind == "slow preprocessors" else 1.0  # so that the encoder is far from full by chance
        arrivals: list[tuple[float, bool]] = []
        for first_s, last_s, times in spans:
            at_s = first_s + draw.expovariate(base * times)
            while at_s < last_s:
                arrivals.append((at_s, times > 1 and draw.random() > 1 / times))
                at_s += draw.expovariate(base * times)
        return cls(kind, seed, factor, tuple(arrivals), before_s, spike_s)

    def body(self, number: int, *, in_spike: bool) -> dict[str, Any]:
        """The request of one arrival. No two pictures are the same."""
        new = [image(random_png(SIDE_PIXELS, SIDE_PIXELS, self.seed * 100_000 + number)), text("What is it?")]
        if self.kind == "slow preprocessors" or (self.kind == "pictures" and (in_spike or number % 2)):
            content = new
        elif in_spike:
            content = [text(f"{number} " + "word " * (LONG_TEXT_CHARS // 5))]
        else:
            content = new if number % 2 else [text(f"{number} Hello")]
        return chat(content, max_tokens=MAX_TOKENS, stream=True)


@dataclass
class Sample:
    """The pools at one moment: for each the replicas that run, the target and the reason of the last decision."""

    at_s: float
    running: dict[str, int]
    target: dict[str, int]
    reason: dict[str, str]


@dataclass
class Run:
    """The record of one load: its requests, their times, and the pools while it ran."""

    kind: Kind
    seed: int
    factor: float
    policy: Policy
    before_s: float
    spike_s: float
    num_requests: int = 0
    failures: list[str] = field(default_factory=list)
    ttfts: list[tuple[float, float]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    settled_s: float | None = None

    def most(self, pool: str) -> int:
        """The highest target of a pool."""
        return max(sample.target[pool] for sample in self.samples)

    def raised_s(self, pool: str) -> float | None:
        """The time from the beginning of the spike until the target of a pool rose first."""
        first = self.samples[0].target[pool]
        times = [sample.at_s - self.before_s for sample in self.samples if sample.target[pool] > first]
        return times[0] if times else None

    def steps(self, pool: str) -> list[int]:
        """The targets of a pool, one for each change."""
        return [target for target, _ in itertools.groupby(sample.target[pool] for sample in self.samples)]

    def verdict(self) -> dict[str, bool]:
        """Which lines hold."""
        bottleneck = {"pictures": "VisionEncoder", "long text": "Decoder", "slow preprocessors": "Preprocessor"}[
            self.kind
        ]
        others = {
            "pictures": ["Decoder"],
            "long text": ["VisionEncoder", "Preprocessor"],
            "slow preprocessors": ["VisionEncoder", "Decoder"],
        }[self.kind]
        raised_s = self.raised_s(bottleneck)
        limit_s = self.spike_s if self.kind == "slow preprocessors" else RAISED_S
        rises = [b for a, b in itertools.pairwise(self.steps(bottleneck)) if b > a]
        return {
            "bottleneck raised in time": raised_s is not None and raised_s <= limit_s,
            "in one step": len(rises) == 1,
            "the others stay": all(self.most(pool) == SHRUNK for pool in others),
            "all come back": self.settled_s is not None,
            "no request fails": not self.failures,
        }


def paced_content(pace: Mapping[str, float]) -> dict[str, Any]:
    """The content of the embedded default with paced pools, which hardly reserve CPUs."""
    small = {"resources": {"num_cpus": 0.01}}
    content = changed_app(dict.fromkeys(("router", "preprocessor", "encoder", "decoder"), small))
    [application] = content["applications"]
    application["args"]["encoder"] |= {"device": "cpu", "num_threads": 1}
    application["args"]["decoder"] |= {"device": "cpu"}
    application["args"]["pace"] = dict(pace)
    application["import_path"] = "tests.helpers.paced:build"
    return content


def paced_file(policy: Policy, min_replicas: Mapping[str, int] | None = None) -> ApplicationFile:
    """The embedded default with paced pools of one to ``MAX_REPLICAS`` replicas, or of a given number at least."""
    content = paced_content({})
    [application] = content["applications"]
    for entry in application["deployments"]:
        is_router = entry["name"] == "Router"
        least = (min_replicas or {}).get(entry["name"], 1)
        entry["autoscaling_config"] = {
            "min_replicas": least,
            "max_replicas": 1 if is_router else MAX_REPLICAS,
            **MEASURED,
        }
        if policy == "serve":
            entry["autoscaling_config"] |= {"downscale_delay_s": WINDOW_S, "target_ongoing_requests": 2}
        if is_router:
            tuned = {"scaling": "act", "scale_down_window_s": WINDOW_S, "ttft_slo_s": 2.0}
            entry["user_config"] = {**entry["user_config"], **tuned}
    if policy == "serve":
        del application["autoscaling_policy"]
    else:
        starts = dict.fromkeys(POOLS, TOLD_START_S)
        application["autoscaling_policy"]["policy_kwargs"] = {"start_s": starts}
    file = ApplicationFile.read(APP)
    return replace(file, serve=ServeDeploySchema.model_validate(content))


@contextmanager
def paced_cluster(policy: Policy, min_replicas: Mapping[str, int] | None = None) -> Iterator[Cluster]:
    """Runs the paced cluster inside the block."""
    with running(paced_file(policy, min_replicas), port=free_port()) as cluster:
        yield cluster


async def slow_down(policy: Policy, slowness: float) -> None:
    """Makes all preprocessors slower by a factor, without a restart."""
    file = paced_file(policy)
    content = file.serve.model_dump(exclude_unset=True)
    for entry in content["applications"][0]["deployments"]:
        if entry["name"] == "Preprocessor":
            entry["user_config"] = {"slowness": slowness}
    changed = replace(file, serve=ServeDeploySchema.model_validate(content))
    await asyncio.to_thread(deploy, changed.for_one_machine())


async def run_load(url: str, load: Load, policy: Policy) -> Run:
    """Sends a load, samples the pools, and waits until all of them are small again."""
    run = Run(load.kind, load.seed, load.factor, policy, load.before_s, load.spike_s)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        started_s = time.perf_counter()
        sampling = asyncio.create_task(_sample(client, run, started_s))
        changes = (
            asyncio.create_task(_slow_for_a_while(policy, load, started_s))
            if load.kind == "slow preprocessors"
            else None
        )
        asks = []
        for number, (at_s, in_spike) in enumerate(load.arrivals):
            await asyncio.sleep(max(0.0, at_s - (time.perf_counter() - started_s)))
            body = load.body(number, in_spike=in_spike)
            asks.append(asyncio.create_task(_ask(client, body, run, at_s, started_s)))
        await asyncio.gather(*asks)
        if changes is not None:
            await changes
        run.num_requests = len(asks)
        ended_s = time.perf_counter()
        while time.perf_counter() - ended_s < SETTLE_S:
            if all(count <= SHRUNK for count in run.samples[-1].running.values()):
                run.settled_s = time.perf_counter() - ended_s
                break
            await asyncio.sleep(SAMPLE_S)
        sampling.cancel()
    return run


async def _slow_for_a_while(policy: Policy, load: Load, started_s: float) -> None:
    await asyncio.sleep(max(0.0, load.before_s - (time.perf_counter() - started_s)))
    await slow_down(policy, SLOWNESS)
    await asyncio.sleep(load.spike_s)
    await slow_down(policy, 1.0)


async def _sample(client: httpx.AsyncClient, run: Run, started_s: float) -> None:
    while True:
        pools = (await client.get("/status")).json()["pools"]
        counts = {name: pool["replicas"].get("RUNNING", 0) for name, pool in pools.items()}
        total = {
            name: sum(n for state, n in pool["replicas"].items() if state != "STOPPING") for name, pool in pools.items()
        }
        decided = {name: pool["scaling"] or {} for name, pool in pools.items()}
        targets = {
            name: decided[name].get("target", total[name]) if run.policy == "joint" else total[name] for name in pools
        }
        reasons = {name: decided[name].get("reason", "") for name in pools}
        run.samples.append(Sample(time.perf_counter() - started_s, counts, targets, reasons))
        await asyncio.sleep(SAMPLE_S)


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], run: Run, at_s: float, started_s: float) -> None:
    """Sends one request and checks that its stream is whole. It counts tokens by the usage, and otherwise by the
    chunks."""
    num_tokens, is_done, usage = 0, False, None
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                run.failures.append(f"{response.status_code} {(await response.aread())[:200]!r}")
                return
            async for line in response.aiter_lines():
                if line.startswith("data: [DONE]"):
                    is_done = True
                elif line.startswith("data: "):
                    if not num_tokens:
                        run.ttfts.append((at_s, time.perf_counter() - started_s - at_s))
                    chunk = json.loads(line.removeprefix("data: "))
                    num_tokens += "choices" in chunk
                    usage = chunk.get("usage") or usage
    except httpx.HTTPError as error:
        run.failures.append(repr(error))
        return
    num_tokens = usage["completion_tokens"] if usage else num_tokens
    if not is_done or num_tokens != body["max_tokens"]:
        run.failures.append(f"a stream of {num_tokens} tokens, done: {is_done}")


def plot(runs: list[Run], path: Path) -> None:
    """Draws load, replicas, targets and TTFT of each run, one column per run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(runs), 11), layout="constrained")
    axes = figure.subplots(5, len(runs), sharex="col", squeeze=False)
    for column, run in enumerate(runs):
        times_s = [sample.at_s for sample in run.samples]
        top = axes[0][column]
        top.hist(
            [at_s for at_s, _ in run.ttfts], bins=[float(t) for t in range(0, 80, 2)], weights=[0.5] * len(run.ttfts)
        )
        top.set_ylabel("requests/s")
        top.set_title(f"{run.kind}, ×{run.factor:.1f}, seed {run.seed}, {run.policy} policy")
        for row, pool in enumerate(POOLS[1:], 1):
            axis = axes[row][column]
            axis.step(times_s, [sample.target[pool] for sample in run.samples], where="post", label="target")
            axis.step(times_s, [sample.running[pool] for sample in run.samples], where="post", label="running")
            axis.set_ylabel(pool)
            axis.set_ylim(0, MAX_REPLICAS + 0.5)
            axis.legend(loc="upper right")
        low = axes[4][column]
        low.plot([at_s for at_s, _ in run.ttfts], [ttft_s for _, ttft_s in run.ttfts], ".")
        low.set_ylabel("TTFT in s")
        low.set_xlabel("s")
        for row in range(5):
            axes[row][column].axvspan(run.before_s, run.before_s + run.spike_s, alpha=0.1)
            axes[row][column].grid(alpha=0.3)
    figure.savefig(path, dpi=70)


def main() -> None:
    """The long proof."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--policy", choices=get_args(Policy), default="joint")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with paced_cluster(options.policy) as cluster:
        for seed in range(options.first, options.first + options.seeds):
            run = asyncio.run(run_load(cluster.url, Load.random(seed), options.policy))
            verdict = run.verdict()
            (options.out / f"{options.policy}-{seed}.json").write_text(json.dumps(asdict(run)))
            plot([run], options.out / f"{options.policy}-{seed}.png")
            highest = {pool: run.most(pool) for pool in POOLS[1:]}
            summary = {"seed": seed, "kind": run.kind, "factor": round(run.factor, 1), "highest": highest}
            print(yaml.safe_dump({**summary, **verdict, "failures": run.failures[:3]}, sort_keys=False), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
