"""The workloads: what is asked in which phases, of which systems, and which figures come out.

Every system gets the same bytes in the same repeat; pictures are made for it alone, and new ones are in no earlier
phase.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadtest.bench.requests import Request, Size, body, bursts, new_picture, steady, windows
from loadtest.bench.systems import Setup
from loadtest.report import percentile

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from loadtest.bench.load import Client, Sample

SMALL: Final = (224, 168)
SQUARE: Final = (448, 448)
LARGE: Final = (6000, 4000)
WORDS: Final = ("river", "window", "copper", "garden", "winter", "signal", "paper", "harbour", "summer", "engine")

DEMO: Final = Setup("demo, one engine", "demo")
TWO: Final = Setup("bench geometry, two engines", "bench", engine_cores=(0, 1), whole_prompts=True)
APART: Final = Setup("bench geometry, decoder and encoder on a core each", "bench", engine_cores=(1,), encoder_core=0)
LANES: Final = {lanes: Setup(f"demo, preprocessors: {lanes}", "demo", num_preprocessors=lanes) for lanes in (1, 2)}
ONE_ENGINE: Final = ("prism", "vllm", "ray-serve-llm")
AT_ONCE_S: Final = 0.004
"""No engine here makes 16 tokens in this time, so that they were held back on their way."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of load: a closed loop over queues, or an open loop over a schedule.

    Args:
        queues: Each is worked off in order by ``users_per_queue`` users.
        schedule: Requests with their times.
        recorded: False for what only fills caches.
    """

    name: str
    queues: tuple[tuple[Request, ...], ...] = ()
    users_per_queue: int = 1
    schedule: tuple[Request, ...] = ()
    recorded: bool = True

    async def run(self, client: Client) -> list[Sample]:
        """Sends it all and waits for all answers."""
        if self.schedule:
            return await client.open_loop(self.schedule)
        return await client.closed_loop(self.queues, self.users_per_queue)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes one workload's requests for one repeat.

    Args:
        rng: Seeded by workload and repeat: the same for every system.
        allowed: The tokens of the checkpoint that an answer may have.
        quick: Asks for fewer.
    """

    rng: random.Random
    allowed: Sequence[int]
    quick: bool = False

    def scaled(self, count: int) -> int:
        """A number of requests, less where it should be quick."""
        return max(2, count // 4) if self.quick else count

    def pictures(self, count: int, size: Size) -> list[bytes]:
        """New pictures."""
        return [new_picture(self.rng, size) for _ in range(count)]

    def ask(
        self,
        kind: str,
        pictures: Sequence[bytes] = (),
        *,
        num_tokens: int,
        at_s: float = 0.0,
        session: str | None = None,
        text_first: bool = False,
    ) -> Request:
        """A request about these pictures, in words of its own."""
        text = f"Tell me about the {' and the '.join(self.rng.choices(WORDS, k=3))}."
        raw = body(text, pictures, num_tokens, self.allowed, text_first=text_first)
        return Request(kind, raw, num_tokens, at_s, session)


Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table.

    Args:
        name: As in ``--only``.
        phases: Writes them anew for each repeat.
        figures: What to report of the samples of each recorded phase.
    """

    name: str
    title: str
    setup: Setup
    systems: tuple[str, ...]
    phases: Callable[[Writer], list[Phase]]
    figures: Callable[[Mapping[str, Sequence[Sample]]], Figures]


def warm_up(write: Writer, size: Size) -> Phase:
    """What every freshly started system gets first: text and pictures, alone and together."""
    requests = [write.ask("warm", num_tokens=8) for _ in range(6)]
    requests += [write.ask("warm", [picture], num_tokens=8) for picture in write.pictures(6, size)]
    together = [write.ask("warm", [picture], num_tokens=8) for picture in write.pictures(12, size)]
    return Phase(
        "warm-up", (tuple(requests), tuple(together[:6]), tuple(together[6:])), users_per_queue=2, recorded=False
    )


def _text(write: Writer) -> list[Phase]:
    requests = tuple(write.ask("text", num_tokens=16) for _ in range(write.scaled(120)))
    return [Phase("text", (requests,))]


def _picture_new(write: Writer) -> list[Phase]:
    pictures = write.pictures(write.scaled(80), SMALL)
    return [Phase("picture", (tuple(write.ask("picture", [picture], num_tokens=16) for picture in pictures),))]


def _picture_seen(write: Writer) -> list[Phase]:
    pictures = write.pictures(4, SMALL)
    first = tuple(write.ask("picture", [picture], num_tokens=16) for picture in pictures)
    again = tuple(write.ask("picture", [write.rng.choice(pictures)], num_tokens=16) for _ in range(write.scaled(80)))
    return [Phase("first sight", (first,), recorded=False), Phase("picture", (again,))]


def _saturation(write: Writer) -> list[Phase]:
    pictures = write.pictures(write.scaled(480), SMALL)
    requests = tuple(write.ask("picture", [picture], num_tokens=16) for picture in pictures)
    return [Phase("picture", (requests,), users_per_queue=16)]


WINDOW_USERS: Final = 8
WINDOW: Final = 5
WINDOW_TOKENS: Final = 64


def _windows(write: Writer) -> list[Phase]:
    """Each user's first request fills the caches and is not counted; from then on four pictures of five were there
    before."""
    first, rest = [], []
    num_turns = 1 + write.scaled(12)
    for number in range(WINDOW_USERS):
        user = f"{write.rng.getrandbits(32):08x}-{number}"
        turns = windows(write.pictures(WINDOW + num_turns - 1, SQUARE), WINDOW, num_turns)
        requests = [write.ask("window", turn, num_tokens=WINDOW_TOKENS, session=user) for turn in turns]
        first.append(tuple(requests[:1]))
        rest.append(tuple(requests[1:]))
    return [Phase("first turn", tuple(first), recorded=False), Phase("window", tuple(rest))]


STREAMS_PER_S: Final = 4.0
STREAM_TOKENS: Final = 48


def _bursts(write: Writer) -> list[Phase]:
    """Twice the same steady streams of text: alone, then while pictures come, twelve in three seconds."""
    until_s = 8.0 if write.quick else 20.0
    starts_s = [1.0] if write.quick else [1.0, 7.0, 13.0]

    def streams() -> list[Request]:
        return [write.ask("text", num_tokens=STREAM_TOKENS, at_s=at_s) for at_s in steady(STREAMS_PER_S, until_s)]

    times_s = bursts(starts_s, 12, 4.0)
    pictures = [
        write.ask("picture", [picture], num_tokens=16, at_s=at_s)
        for picture, at_s in zip(write.pictures(len(times_s), SQUARE), times_s, strict=True)
    ]
    together = sorted([*streams(), *pictures], key=lambda request: request.at_s)
    return [Phase("alone", schedule=tuple(streams())), Phase("with pictures", schedule=tuple(together))]


LONG_TOKENS: Final = 33


def _geometry(write: Writer) -> list[Phase]:
    """The same pictures each time, after other words: the language model reads them anew, only the encoder need not."""
    pictures = write.pictures(write.scaled(24), SQUARE)
    lengths = {"new": 1, "again": 1, "long": LONG_TOKENS}
    return [
        Phase(
            name, (tuple(write.ask("picture", [picture], num_tokens=count, text_first=True) for picture in pictures),)
        )
        for name, count in lengths.items()
    ]


def encoding(phases: Mapping[str, Sequence[Sample]]) -> Figures:
    """What a new picture costs more than one that is encoded already, in milliseconds and in decode steps.

    A step is taken from answers of two lengths, not from gaps: it does not matter how servers pack tokens.
    """
    new_ms, again_ms, long_ms = (
        statistics.median(sample.total_s * 1000 for sample in phases[name]) for name in ("new", "again", "long")
    )
    step_ms = (long_ms - again_ms) / (LONG_TOKENS - 1)
    return {
        "answer about a new picture, ms": new_ms,
        "answer about an encoded one, ms": again_ms,
        "one decode step, ms": step_ms,
        "one picture, ms": new_ms - again_ms,
        "one picture, decode steps": ratio(new_ms - again_ms, step_ms),
    }


def ratio(value: float, other: float) -> float:
    """How many times ``other``, which counts as a hundredth of a millisecond at least: less is noise."""
    return value / max(other, 0.01)


def _preprocessing(write: Writer) -> list[Phase]:
    pictures = write.pictures(max(8, write.scaled(24)), LARGE)
    requests = tuple(write.ask("picture", [picture], num_tokens=1) for picture in pictures)
    return [Phase("picture", (requests,), users_per_queue=6)]


def latencies(samples: Sequence[Sample]) -> Figures:
    """TTFT and time per token in milliseconds, and the share of answers whose text came all at once."""
    ttft_ms = sorted(sample.ttft_s * 1000 for sample in samples)
    at_once = [
        sample for sample in samples if sample.num_tokens > 1 and sample.texts_s[-1] - sample.texts_s[0] < AT_ONCE_S
    ]
    return {
        "TTFT p50, ms": statistics.median(ttft_ms),
        "TTFT mean, ms": statistics.fmean(ttft_ms),
        "TTFT p90, ms": percentile(ttft_ms, 0.9),
        "ITL, ms": statistics.fmean(sample.tpot_s * 1000 for sample in samples),
        "answers at once, %": 100 * len(at_once) / len(samples),
    }


def throughput(samples: Sequence[Sample]) -> Figures:
    """Requests per second, from the first that was sent to the last that was done."""
    span_s = max(sample.done_s for sample in samples) - min(sample.start_s for sample in samples)
    return {"requests/s": len(samples) / span_s}


def gaps(samples: Sequence[Sample]) -> Figures:
    """The gaps between tokens of all text streams, in milliseconds."""
    gaps_ms = sorted(gap_s * 1000 for sample in samples if sample.kind == "text" for gap_s in sample.gaps_s)
    return {
        "gap p50, ms": percentile(gaps_ms, 0.5),
        "gap p99, ms": percentile(gaps_ms, 0.99),
        "gap p99.9, ms": percentile(gaps_ms, 0.999),
        "gap worst, ms": gaps_ms[-1],
    }


def stalls(phases: Mapping[str, Sequence[Sample]]) -> Figures:
    """Gaps without and with pictures, and how many times longer they are with them."""
    alone, together = gaps(phases["alone"]), gaps(phases["with pictures"])
    pictures = latencies([sample for sample in phases["with pictures"] if sample.kind == "picture"])
    return {
        **{f"{name.removesuffix(', ms')} ×": ratio(together[name], alone[name]) for name in alone},
        **{f"{name}, alone": value for name, value in alone.items()},
        **{f"{name}, with pictures": value for name, value in together.items()},
        "picture TTFT p50, ms": pictures["TTFT p50, ms"],
    }


def _of_picture(phases: Mapping[str, Sequence[Sample]]) -> Figures:
    return latencies(phases["picture"])


def _rates(phases: Mapping[str, Sequence[Sample]]) -> Figures:
    [samples] = phases.values()
    return throughput(samples) | latencies(samples)


WORKLOADS: Final = (
    Scenario("text", "text only, one at a time", DEMO, ONE_ENGINE, _text, lambda phases: latencies(phases["text"])),
    Scenario("picture_new", "a new 224×168 picture, one at a time", DEMO, ONE_ENGINE, _picture_new, _of_picture),
    Scenario("picture_seen", "a picture seen before, one at a time", DEMO, ONE_ENGINE, _picture_seen, _of_picture),
    Scenario("saturation", "all pictures new, 16 at once, 16 tokens", DEMO, ONE_ENGINE, _saturation, _rates),
    Scenario(
        "windows",
        "sliding window, 80 % reuse, 8 users, two engines that prefill whole prompts",
        TWO,
        ("prism", "vllm-router", "vllm-router-session"),
        _windows,
        _rates,
    ),
    Scenario("geometry", "what a 448×448 picture costs to encode", APART, ("prism", "vllm"), _geometry, encoding),
    Scenario("bursts", "steady text while pictures come in bursts", APART, ONE_ENGINE, _bursts, stalls),
    Scenario("preprocess_one", "24-megapixel pictures, one preprocessor", LANES[1], ("prism",), _preprocessing, _rates),
    Scenario(
        "preprocess_two", "24-megapixel pictures, two preprocessors", LANES[2], ("prism",), _preprocessing, _rates
    ),
)
