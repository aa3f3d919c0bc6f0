"""Kills decoders under streams, and compares each stream with what it tells undisturbed.

    python -m tests.helpers.continuations --streams 100

It starts a cluster with two decoders. In each round it starts streams, about half of them on either decoder, and kills
the engine or the whole process of one decoder after a random number of events. It prints how many streams went on, were
equal, were not, or ended with an error, and the longest silence that the clients of the streams saw.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from loadtest.servers import sized
from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.launching import Launched, engine_of, is_running, launched_with, replicas
from tests.helpers.stories import Story, story_of

NUM_TOKENS: Final = 100
ROUND: Final = 20
"""Streams that run at the same time."""
MAX_PARTS: Final = 4 * ROUND
"""A decoder is killed before the clients have got so many parts. A decoder joins the events of many streams, so a whole
stream is not much more than ten parts."""
CONTINUED: Final = re.compile(r'prism_continuations_total{.*outcome="continued"')
SCHEMA: Final = {"type": "object", "properties": {"word": {"enum": ["left", "right"]}}, "required": ["word"]}


@dataclass
class Seen:
    """The text of a stream that one client got, and the longest time between two parts of it, in seconds."""

    sent: str = ""
    silence_s: float = 0.0


@dataclass
class Tally:
    """The streams of all rounds, by their outcome."""

    num_equal: int = 0
    num_unequal: int = 0
    num_errors: int = 0
    num_continued: int = 0
    silences_s: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        silent = sorted(self.silences_s)
        gap = f"gap p50 {statistics.median(silent):.2f} s, max {silent[-1]:.2f} s" if silent else "no gap"
        return (
            f"{self.num_continued} continuations: {self.num_equal} streams equal, {self.num_unequal} not equal, "
            f"{self.num_errors} with an error; {gap}"
        )


def bodies(seed: int) -> list[dict[str, Any]]:
    """The requests of a round, of five kinds."""
    kinds = [
        chat([text(f"{seed} Count to a thousand.")]),
        chat([image(random_png(56, 56, 40_000 + seed)), text("What is it?")]),
        chat([text(f"{seed} Which way?")], structured_outputs={"json": SCHEMA}),
        chat([text(f"{seed} Which number?")], temperature=1.0, seed=seed),
        chat([text(f"{seed} Again and again.")], logprobs=True, frequency_penalty=0.5),
    ]
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    return [{**kinds[number % len(kinds)], **options} for number in range(ROUND)]


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], left: list[int], begun: asyncio.Event) -> Seen:
    """Reads a stream. Counts ``left`` down by its parts, and sets ``begun`` at zero."""
    seen, last_s = Seen(), time.monotonic()
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for part in answer.aiter_text():
            now_s = time.monotonic()
            if seen.sent:
                seen.silence_s = max(seen.silence_s, now_s - last_s)
            last_s, seen.sent = now_s, seen.sent + part
            left[0] -= 1
            if left[0] <= 0:
                begun.set()
    return seen


def told(story: Story) -> Any:
    """The part of a story that two runs of a request have in common."""
    return story.told, story.usage, story.is_whole, len(story.names)


async def num_continued(client: httpx.AsyncClient) -> float:
    """The continuations that the Router has counted."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if CONTINUED.match(line))


async def run(launched: Launched, num_streams: int, seed: int) -> Tally:
    """Kills one decoder in each round, until so many streams have gone on."""
    tally, chance = Tally(), random.Random(seed)
    async with httpx.AsyncClient(base_url=launched.url, timeout=280) as client:
        for number in range(1000):
            await is_running(client, "Decoder", 2)
            asked, never = bodies(seed + number), asyncio.Event()
            undisturbed = await asyncio.gather(*(streamed(client, body, [10**9], never) for body in asked))
            before, begun = await num_continued(client), asyncio.Event()
            left = [chance.randrange(1, MAX_PARTS)]
            streams = [asyncio.ensure_future(streamed(client, body, left, begun)) for body in asked]
            waiting = [asyncio.ensure_future(begun.wait()), asyncio.ensure_future(asyncio.wait(streams))]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting[0].cancel()
            running = [one for one in replicas(launched.root, "Decoder", at_least=2) if one.children()]
            victim = chance.choice(running)  # one that has just started has no engine yet
            (victim if number % 2 else engine_of(victim)).kill()
            seen = await asyncio.gather(*streams)
            here = int(await num_continued(client) - before)
            tally.num_continued += here
            tally.silences_s += sorted(one.silence_s for one in seen)[ROUND - here :]
            for one, other in zip(seen, undisturbed, strict=True):
                story = story_of(one.sent)
                if story.errors:
                    tally.num_errors += 1
                elif told(story) == told(story_of(other.sent)):
                    tally.num_equal += 1
                else:
                    tally.num_unequal += 1
            sys.stdout.write(f"round {number}: {tally}\n")
            sys.stdout.flush()
            if tally.num_continued >= num_streams:
                break
    return tally


def main() -> None:
    """Runs the rounds on a cluster of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100, help="how many streams are to go on")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with launched_with({"Decoder": sized(2)}) as launched:
        sys.stdout.write(f"{asyncio.run(run(launched, arguments.streams, arguments.seed))}\n")


if __name__ == "__main__":
    main()
