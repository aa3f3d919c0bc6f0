"""Decoder routing: chooses a decoder for each call, by the part of the prompt that the decoder has cached already.

In: a ``Call``, the replicas of the pool, their reports, and the time. Out: the replicas, best first.

A call goes to the decoder that will start its answer first. The time until then is counted in tokens to prefill: the
tokens of the prompt that are not in the replica's KV cache, and the work that the replica has to do before.

Each Router knows only its own calls. So that all Routers find the same decoder for the turns of a conversation, it has
a home by rendezvous hashing of its first turn, and every other replica costs more.

A prompt is read as a chain of links. As in vLLM's prefix cache, the name of a link covers the whole prefix of the
prompt up to the end of that link. Two conversations share a link if, and only if, they are equal up to there. When a
conversation goes on, its new prompt begins with all the links of its old one.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final

from cluster.messages import cache_salt, is_picture
from cluster.routing.ledger import CallId, Held, ReplicaState, Routes, Task
from cluster.routing.pictures import rendezvous

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence

    from cluster.checkpoint import ProcessorSettings
    from cluster.messages import Call, Digest, Replica

RUNNING_TOKENS: Final = 128
"""The cost in tokens of a request besides its prompt, from its start to its end: about half of a usual answer."""
FETCH_SHARE: Final = 0.1
"""The cost of sending an embedding to a decoder that does not have it, as a share of the cost of its prefill."""
PREFIX_SHARE: Final = 0.5
"""A cached prefix counts only if it is at least this share of the prompt. Otherwise a short system prompt that all
conversations have in common would send all of them to one replica."""
AWAY_SHARE, MAX_AWAY_TOKENS = 32, 8192
"""The cost of sending a conversation to a replica where no Router will look for it later: a multiple of its prompt, and
at most so many tokens. A higher cost delays calls behind the work of others. Measured (tests/helpers/decoders.py, four
Routers, four decoders, 40 and 70 % load, 2026-11-29; later turns that find their prefix): no cost → 32 and 31 %, 16
times the prompt → 96 and 90 %, 32 times → 100 and 95 %."""
MIN_FREE_KV: Final = 0.05
"""The work of a decoder is divided by the free share of its KV cache, so that a full decoder gets fewer calls. The free
share counts as at least this much, so that the work weighs at most 20 times."""
CHARS_PER_TOKEN: Final = 4
"""An estimate: routing has no tokenizer."""
CHUNK_CHARS: Final = 1024
"""A longer text is split into several links, so that texts with the same beginning share their first links."""
MAX_LINKS: Final = 256
"""The rest of a longer prompt gets no links; only its tokens are counted."""


@dataclass(frozen=True, slots=True)
class Link:
    """One segment of a prompt.

    ``name`` is a hash of the prompt from its beginning to the end of this segment. ``num_tokens`` estimates the tokens
    of this segment alone. ``picture`` is the digest of the picture, if the segment is one.
    """

    name: bytes
    num_tokens: int
    picture: Digest | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt as a chain of links.

    ``num_tokens`` estimates the whole prompt, with the text after the last link. ``start`` is the name of the link that
    ends the user's first message, which is the same in all later turns. It is empty if there is no such message.
    """

    links: tuple[Link, ...]
    num_tokens: int
    start: bytes


class ConversationRoutes(Routes[Conversation]):
    """Chooses a decoder for each call. Work and cache contents are counted in tokens.

    Args:
        report_period_s: The time in seconds between two reports of a replica. The prompt of a new call counts as work
            for two periods. After that, the replica's own reports include it if it still waits.
    """

    def __init__(self, report_period_s: float) -> None:
        super().__init__()
        self._settles_after_s: Final = 2 * report_period_s
        self._starts: Final[dict[CallId, bytes]] = {}
        self._num_started: Final = Counter[bytes]()

    def rank(self, item: Conversation, replicas: Collection[Replica], now_s: float) -> list[Replica]:
        """The replicas, the cheapest for this call first. A replica that is not among its places costs more.

        Replicas of equal cost are in the rendezvous order of the conversation.
        """
        key = item.start or (item.links[-1].name if item.links else b"")
        order = rendezvous(key.hex(), replicas)
        places, away_tokens = self._places(item, order), min(AWAY_SHARE * item.num_tokens, MAX_AWAY_TOKENS)

        def cost(replica: Replica) -> float:
            return self.cost(item, replica, now_s) + (0 if replica in places else away_tokens)

        return sorted(order, key=cost)

    def cost(self, item: Conversation, replica: Replica, now_s: float) -> float:
        """The work that a replica must do before it begins to answer this prompt, in tokens to prefill."""
        state = self._state(replica)
        return self._prefill(item, state) + state.work.total(now_s) / max(1 - state.kv_use, MIN_FREE_KV)

    def _places(self, item: Conversation, order: Sequence[Replica]) -> Collection[Replica]:
        """The replicas where a conversation belongs: those that have its first turn, or else its home.

        All replicas are places in three cases: The prompt has no first turn. Or another call with the same first turn
        is under way: the turns of one conversation come one after the other, so many conversations have it in common.
        Or no replica has the first turn, but one has a picture of it: then the cost of fetching embeddings decides.
        """
        if not item.start or self._num_started[item.start]:
            return order
        if having := [replica for replica in order if item.start in self._state(replica).held]:
            return having
        pictures = {link.picture for link in item.links if link.picture is not None}
        if any(picture in self._state(replica).held for replica in order for picture in pictures):
            return order
        return order[:1]

    def sent(self, call: CallId, item: Conversation, replica: Replica, now_s: float, *, is_sure: bool = True) -> None:
        """See ``Routes.sent``."""
        super().sent(call, item, replica, now_s, is_sure=is_sure)
        if call not in self._starts:
            self._starts[call] = item.start
            self._num_started[item.start] += 1

    def ended(self, call: CallId) -> None:
        """See ``Routes.ended``."""
        super().ended(call)
        if (start := self._starts.pop(call, None)) is not None:
            self._num_started[start] -= 1
            if not self._num_started[start]:
                del self._num_started[start]

    def report(self, replica: Replica, stats: Mapping[str, float], now_s: float) -> None:
        """Notes a decoder's report.

        Args:
            replica: The decoder.
            stats: ``queued_tokens``, ``waiting`` and ``running`` (numbers of requests), and ``kv_use`` (0 to 1).
            now_s: The time in seconds, on the clock of all other calls.
        """
        state = self._state(replica)
        state.work.report(stats["queued_tokens"] + RUNNING_TOKENS * (stats["waiting"] + stats["running"]), now_s)
        state.kv_use = stats["kv_use"]

    def _task(self, call: CallId, item: Conversation, state: ReplicaState, now_s: float) -> tuple[Hashable, Task]:
        return call, Task(RUNNING_TOKENS + self._prefill(item, state), RUNNING_TOKENS, now_s + self._settles_after_s)

    def _hold(self, item: Conversation, held: Held) -> None:
        # Backwards, so that the beginning of the prompt counts as used last and is forgotten last: the later links are
        # useless without it.
        for link in reversed(item.links):
            held.use(link.name, link.num_tokens)
            if link.picture is not None:
                held.use(link.picture, 0)

    def _prefill(self, item: Conversation, state: ReplicaState) -> float:
        """The cost of a prompt's prefill on a replica, in tokens: those not cached, plus the embeddings to fetch."""
        num_cached = sum(link.num_tokens for link in takewhile(lambda link: link.name in state.held, item.links))
        if num_cached < PREFIX_SHARE * item.num_tokens:
            num_cached = 0
        passed, fetched = 0, 0
        for link in item.links:
            passed += link.num_tokens
            if passed > num_cached and link.picture is not None and link.picture not in state.held:
                fetched += link.num_tokens
        return item.num_tokens - num_cached + FETCH_SHARE * fetched


def read_conversation(call: Call, settings: ProcessorSettings) -> Conversation:
    """Reads the prompt of a call as a chain of links.

    The body comes from the client and has not been validated yet, so any JSON gives a chain and nothing is refused.

    Args:
        call: The call; requests with different ``cache_salt`` values have no link in common.
        settings: The processor's settings, which say how many tokens a picture has.
    """
    links: list[Link] = []
    name = blake2b(cache_salt(call.body), digest_size=16).digest()
    segments, start, has_asked = _segments_of_prompt(call.body), b"", False
    for kind, segment in islice(segments, MAX_LINKS):
        if kind == "role":
            if has_asked and not start and links:
                start = links[-1].name
            has_asked = has_asked or segment == "user"
        name = blake2b(name + kind.encode() + segment.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if kind == "picture":
            links.append(Link(name, settings.num_tokens(call.num_pixels.get(segment, 0)), segment))
        elif kind == "text":
            links.append(Link(name, _num_tokens(segment)))
    rest = sum(_num_tokens(segment) for _, segment in segments)
    if links and has_asked and not start:
        start = links[-1].name
    return Conversation(tuple(links), sum(link.num_tokens for link in links) + rest, start)


def _num_tokens(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def _segments_of_prompt(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the segments of a prompt in order, as pairs (kind, segment).

    The kinds are ``text``, ``picture`` (the segment is the picture's digest), and ``role`` (the role of the message
    whose content follows).
    """
    for first in ("tools", "prompt"):
        if value := body.get(first):
            yield from _texts(value)
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        yield "role", str(message.get("role"))
        if others := {key: value for key, value in message.items() if key not in ("role", "content")}:
            yield from _texts(others)
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, dict) and is_picture(part):
                yield "picture", str(part.get("digest"))
            else:
                yield from _texts(part["text"] if isinstance(part, dict) and "text" in part else part)


def _texts(value: object) -> Iterator[tuple[str, str]]:
    """Yields a text, or any other value as JSON, in segments of at most ``CHUNK_CHARS`` characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    for start in range(0, len(text), CHUNK_CHARS):
        yield "text", text[start : start + CHUNK_CHARS]
