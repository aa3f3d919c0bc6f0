"""A simulated pool of decoders, for tests of how conversations are routed."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cluster.routing.conversations import Conversation, Link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.messages import Replica
    from cluster.routing.conversations import ConversationRoutes

PREFILL_S: Final = 1 / 4000
"""The time to prefill a token. A decoder prefills one prompt after the other."""
ANSWER_TOKENS, ANSWER_S = 64, 1.28
"""An answer, and the time that it takes after its prefill. Answers of a decoder run at the same time."""
NUM_TURNS, TURN_TOKENS, SYSTEM_TOKENS = 6, (60, 400), 50
THINKING_S, REPORT_S, DURATION_S = 4.0, 1.0, 100.0


@dataclass
class Decoder:
    """A decoder: the end of its prefills, the prompts that wait, the number of running answers, and its cache."""

    free_s: float = 0.0
    waiting: list[tuple[float, float]] = field(default_factory=list)
    num_running: int = 0
    cached: set[bytes] = field(default_factory=set)

    def stats(self, now_s: float) -> dict[str, float]:
        """Returns the report that a decoder would make."""
        self.waiting = [(end_s, num_tokens) for end_s, num_tokens in self.waiting if end_s > now_s]
        queued = sum(num_tokens for _, num_tokens in self.waiting)
        return {"queued_tokens": queued, "waiting": 0, "running": self.num_running, "kv_use": 0.1}


def conversation(number: int, sizes: Sequence[int]) -> Conversation:
    """Returns the prompt of a turn. ``sizes`` are the tokens of the system prompt, of the user's messages, and of the
    answers between them."""
    links = [Link(b"system", sizes[0])]
    links += [Link(f"{number} {place}".encode(), num_tokens) for place, num_tokens in enumerate(sizes[1:])]
    return Conversation(tuple(links), sum(sizes), links[1].name)


def share_at_their_prefix(
    routers: Sequence[ConversationRoutes], pool: Sequence[Replica], *, load: float, seed: int
) -> float:
    """Simulates conversations whose turns each go to a random Router.

    Args:
        routers: The routing of each Router.
        pool: The names of the decoders.
        load: The share of the time that the decoders would prefill if all earlier turns were cached.
        seed: The seed of arrivals, sizes and Routers.

    Returns:
        The share of later turns that went to a decoder which had the whole turn before in its cache.
    """
    draw, count, decoders = random.Random(seed), itertools.count(), {name: Decoder() for name in pool}
    events: list[tuple[float, int, str, Any]] = []

    def at(time_s: float, kind: str, subject: Any) -> None:
        heapq.heappush(events, (time_s, next(count), kind, subject))

    gap_s = PREFILL_S * NUM_TURNS * (sum(TURN_TOKENS) / 2) / (load * len(pool))
    arrivals_s = itertools.accumulate(draw.expovariate(1 / gap_s) for _ in itertools.count())
    for number, arrived_s in enumerate(itertools.takewhile(lambda arrived_s: arrived_s < DURATION_S, arrivals_s)):
        at(arrived_s, "turn", (number, [SYSTEM_TOKENS, draw.randint(*TURN_TOKENS)]))
    for number, name in itertools.product(range(int(DURATION_S / REPORT_S)), pool):
        at(number * REPORT_S, "report", name)
    num_later = num_found = 0
    while events:
        now_s, _, kind, subject = heapq.heappop(events)
        if kind == "report":
            for router in routers:
                router.report(subject, decoders[subject].stats(now_s), now_s)
        elif kind == "turn":
            number, sizes = subject
            asked, router = conversation(number, sizes), draw.choice(routers)
            name, call = router.rank(asked, pool, now_s)[0], f"{number} {len(sizes)}"
            router.sent(call, asked, name, now_s)
            decoder = decoders[name]
            if len(sizes) > 2:
                num_later += 1
                num_found += {link.name for link in asked.links[:-2]} <= decoder.cached
            cached = itertools.takewhile(lambda link: link.name in decoder.cached, asked.links)  # noqa: B023
            num_tokens = asked.num_tokens - sum(link.num_tokens for link in cached)
            decoder.free_s = max(now_s, decoder.free_s) + num_tokens * PREFILL_S
            decoder.waiting.append((decoder.free_s, num_tokens))
            decoder.cached |= {link.name for link in asked.links}
            at(decoder.free_s, "begin", decoder)
            at(decoder.free_s + ANSWER_S, "end", (router, call, decoder, number, sizes))
        elif kind == "begin":
            subject.num_running += 1
        else:
            router, call, decoder, number, sizes = subject
            decoder.num_running -= 1
            router.ended(call)
            if len(sizes) < 2 * NUM_TURNS:
                later = [*sizes, ANSWER_TOKENS, draw.randint(*TURN_TOKENS)]
                at(now_s + draw.expovariate(1 / THINKING_S), "turn", (number, later))
    return num_found / num_later
