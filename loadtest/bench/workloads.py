"""The scenarios: each writes requests in phases, names the systems to measure, and computes its figures.

In one repeat every system gets the same bytes. Each repeat has its own pictures, and a picture that a phase calls new
was in no earlier phase.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loadtest.bench.requests import Request, body, bursts, steady, windows
from loadtest.bench.systems import Setup
from loadtest.pictures import Size, new_picture
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
ONE_PREPROCESSOR: Final = Setup("demo, one preprocessor", "demo", num_preprocessors=1)
TWO_PREPROCESSORS: Final = Setup("demo, two preprocessors", "demo", num_preprocessors=2)
ONE_ENGINE: Final = ("prism", "vllm", "ray-serve-llm")
AT_ONCE_S: Final = 0.004
"""If all text of an answer comes within this time, a server held tokens back: no engine here generates 16 tokens so
fast."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a scenario's load: a closed loop over queues, or an open loop over a schedule.

    Args:
        name: The name under which the scenario finds its samples.
        queues: Requests of a closed loop; ``users_per_queue`` users work through each queue in order.
        users_per_queue: How many users each queue has.
        schedule: Requests of an open loop, each with its time.
        recorded: False for a phase that only fills caches; its samples are dropped.
    """

    name: str
    queues: tuple[tuple[Request, ...], ...] = ()
    users_per_queue: int = 1
    schedule: tuple[Request, ...] = ()
    recorded: bool = True

    async def run(self, client: Client) -> list[Sample]:
        """Sends all requests and waits for all answers."""
        if self.schedule:
            return await client.open_loop(self.schedule)
        return await client.closed_loop(self.queues, self.users_per_queue)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the requests of one scenario for one repeat.

    Args:
        rng: Seeded with the scenario and the repeat, so that every system gets the same requests.
        allowed: The tokens that an answer may contain.
        quick: Writes a quarter of the requests.
    """

    rng: random.Random
    allowed: Sequence[int]
    quick: bool = False

    def scaled(self, count: int) -> int:
        """A number of requests: ``count``, or a quarter of it (at least 2) if the run is to be quick."""
        return max(2, count // 4) if self.quick else count

    def pictures(self, count: int, size: Size) -> list[bytes]:
        """New pictures as JPEG files."""
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
        """A request about these pictures, with a random question; ``Request`` and ``body`` explain the arguments."""
        text = f"Tell me about the {' and the '.join(self.rng.choices(WORDS, k=3))}."
        raw = body(text, pictures, num_tokens, self.allowed, text_first=text_first)
        return Request(kind, raw, num_tokens, at_s, session)


Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario of the benchmark, and one section of its report.

    Args:
        name: The name for ``--only``.
        title: The title in the report and in plots.
        setup: How the systems are laid out.
        systems: The systems to measure.
        phases: Writes the phases of one repeat.
        figures: Computes the figures from the samples of the recorded phases, by the phase's name.
    """

    name: str
    title: str
    setup: Setup
    systems: tuple[str, ...]
    phases: Callable[[Writer], list[Phase]]
    figures: Callable[[Mapping[str, Sequence[Sample]]], Figures]


def warm_up(write: Writer, size: Size) -> Phase:
    """The first load of every newly started system: text and pictures, one at a time and several at once."""
    requests = [write.ask("warm", num_tokens=8) for _ in range(6)]
    requests += [write.ask("warm", [picture], num_tokens=8) for picture in write.pictures(6, size)]
    more = [write.ask("warm", [picture], num_tokens=8) for picture in write.pictures(12, size)]
    return Phase("warm-up", (tuple(requests), tuple(more[:6]), tuple(more[6:])), users_per_queue=2, recorded=False)


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
    """Windows of five pictures. The first request of each user fills caches and is not counted; each later request
    repeats four pictures of the one before it."""
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
    """Steady streams of text, twice: first alone, then while pictures arrive in bursts of twelve in three seconds."""
    until_s = 8.0 if write.quick else 20.0
    starts_s = [1.0] if write.quick else [1.0, 7.0, 13.0]

    def streams() -> list[Request]:
        return [write.ask("text", num_tokens=STREAM_TOKENS, at_s=at_s) for at_s in steady(STREAMS_PER_S, until_s)]

    times_s = bursts(starts_s, 12, 4.0)
    pictures = [
        write.ask("picture", [picture], num_tokens=16, at_s=at_s)
        for picture, at_s in zip(write.pictures(len(times_s), SQUARE), times_s, strict=True)
    ]
    mixed = sorted([*streams(), *pictures], key=lambda request: request.at_s)
    return [Phase("alone", schedule=tuple(streams())), Phase("with pictures", schedule=tuple(mixed))]


LONG_TOKENS: Final = 33


def _geometry(write: Writer) -> list[Phase]:
    """The same pictures in three phases, after different words: the language model must read them again each time, but
    the encoder need not encode them again."""
    pictures = write.pictures(write.scaled(24), SQUARE)
    lengths = {"new": 1, "again": 1, "long": LONG_TOKENS}

    def asked(count: int) -> tuple[Request, ...]:
        return tuple(write.ask("picture", [picture], num_tokens=count, text_first=True) for picture in pictures)

    return [Phase(name, (asked(count),)) for name, count in lengths.items()]


def encoding(phases: Mapping[str, Sequence[Sample]]) -> Figures:
    """The cost of encoding one picture, in milliseconds and in decode steps.

    The cost is the extra time of an answer about a new picture, over one about a picture that is encoded already. The
    time of a decode step comes from answers of two lengths, not from gaps, so that it does not matter how servers pack
    tokens into events.
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
    """``value / other`` for times in milliseconds; ``other`` counts as at least 0.01 ms, because less is noise."""
    return value / max(other, 0.01)


def _preprocessing(write: Writer) -> list[Phase]:
    pictures = write.pictures(max(8, write.scaled(24)), LARGE)
    requests = tuple(write.ask("picture", [picture], num_tokens=1) for picture in pictures)
    return [Phase("picture", (requests,), users_per_queue=6)]


def latencies(samples: Sequence[Sample]) -> Figures:
    """TTFT and mean time per token in milliseconds, and the share of answers whose text came all at once."""
    ttft_ms = sorted(sample.ttft_s * 1000 for sample in samples)
    at_once = [
        sample for sample in samples if sample.num_tokens > 1 and sample.texts_s[-1] - sample.texts_s[0] < AT_ONCE_S
    ]
    return {
        "TTFT p50, ms": statistics.median(ttft_ms),
        "TTFT mean, ms": statistics.fmean(ttft_ms),
        "TTFT p90, ms": percentile(ttft_ms, 0.9),
        "ITL, ms": statistics.fmean(sample.itl_s * 1000 for sample in samples),
        "answers at once, %": 100 * len(at_once) / len(samples),
    }


def throughput(samples: Sequence[Sample]) -> Figures:
    """Requests per second, from the moment the first was sent to the moment the last was answered."""
    span_s = max(sample.done_s for sample in samples) - min(sample.start_s for sample in samples)
    return {"requests/s": len(samples) / span_s}


def gaps(samples: Sequence[Sample]) -> Figures:
    """Percentiles of the gaps between tokens in all text streams, in milliseconds."""
    gaps_ms = sorted(gap_s * 1000 for sample in samples if sample.kind == "text" for gap_s in sample.gaps_s)
    return {
        "gap p50, ms": percentile(gaps_ms, 0.5),
        "gap p99, ms": percentile(gaps_ms, 0.99),
        "gap p99.9, ms": percentile(gaps_ms, 0.999),
        "gap worst, ms": gaps_ms[-1],
    }


def stalls(phases: Mapping[str, Sequence[Sample]]) -> Figures:
    """The gaps in text streams without and with pictures, the ratio of the two, and the pictures' TTFT."""
    alone, mixed = gaps(phases["alone"]), gaps(phases["with pictures"])
    pictures = latencies([sample for sample in phases["with pictures"] if sample.kind == "picture"])
    return {
        **{f"{name.removesuffix(', ms')} ×": ratio(mixed[name], alone[name]) for name in alone},
        **{f"{name}, alone": value for name, value in alone.items()},
        **{f"{name}, with pictures": value for name, value in mixed.items()},
        "picture TTFT p50, ms": pictures["TTFT p50, ms"],
    }


def _of_picture(phases: Mapping[str, Sequence[Sample]]) -> Figures:
    return latencies(phases["picture"])


def _rates(phases: Mapping[str, Sequence[Sample]]) -> Figures:
    [samples] = phases.values()
    return throughput(samples) | latencies(samples)


SCENARIOS: Final = (
    Scenario("text", "text only, one at a time", DEMO, ONE_ENGINE, _text, lambda phases: latencies(phases["text"])),
    Scenario("picture_new", "a new 224×168 picture, one at a time", DEMO, ONE_ENGINE, _picture_new, _of_picture),
    Scenario("picture_seen", "a picture seen before, one at a time", DEMO, ONE_ENGINE, _picture_seen, _of_picture),
    Scenario("saturation", "new pictures, 16 users, 16 tokens", DEMO, ONE_ENGINE, _saturation, _rates),
    Scenario(
        "windows",
        "windows of 5 pictures, 4 seen before, 8 users, two engines, whole prompts",
        TWO,
        ("prism", "vllm-router", "vllm-router-session"),
        _windows,
        _rates,
    ),
    Scenario("geometry", "the cost of encoding a 448×448 picture", APART, ("prism", "vllm"), _geometry, encoding),
    Scenario("bursts", "steady text while pictures arrive in bursts", APART, ONE_ENGINE, _bursts, stalls),
    Scenario(
        "preprocess_one",
        "24-megapixel pictures, one preprocessor",
        ONE_PREPROCESSOR,
        ("prism",),
        _preprocessing,
        _rates,
    ),
    Scenario(
        "preprocess_two",
        "24-megapixel pictures, two preprocessors",
        TWO_PREPROCESSORS,
        ("prism",),
        _preprocessing,
        _rates,
    ),
)
