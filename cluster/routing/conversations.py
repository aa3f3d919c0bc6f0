"""Decoder routing: which decoder a call goes to, and the chain of prompt prefixes by which it is chosen.

In: a ``Call``, the pool's replicas, what they report, and the time. Out: the replicas, the best one first.

A call goes where it is done soonest, counted in tokens to prefill: what of its prompt is not in the replica's KV cache,
and what the replica has before it. A prompt is read as a chain of links that name whole prefixes, as vLLM's prefix
cache does with its
blocks: two conversations share a link if, and only if, they are alike up to there. The next turn begins with all its
    links.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final

from cluster.messages import cache_salt, is_picture
from cluster.routing.ledger import CallId, Held, ReplicaState, Routes, Task

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Mapping

    from cluster.checkpoint import ProcessorSettings
    from cluster.messages import Call, Digest, Replica

RUNNING_TOKENS: Final = 128
"""What a request costs its decoder beside its prompt, until it ends: about half of a usual answer."""
FETCH_SHARE: Final = 0.1
"""What it costs to bring an embedding to a decoder that has not had it, as a share of its prefill."""
PREFIX_SHARE: Final = 0.5
"""From this share of the prompt on, a prefix draws a call to where it is cached. A short system prompt that all
conversations have in common must not keep them together."""
MIN_FREE_KV: Final = 0.05
"""The fuller a decoder's KV cache, the more its work weighs: by 1 / free, and no more than 20 times."""
CHARS_PER_TOKEN: Final = 4
CHUNK_CHARS: Final = 1024
"""A longer text is several links, so that texts which begin alike share some."""
MAX_LINKS: Final = 256
"""What stands behind so many links is counted, and not told apart."""


@dataclass(frozen=True, slots=True)
class Link:
    """A point in a prompt: ``name`` stands for all before and in it, ``num_tokens`` is about what it adds."""

    name: bytes
    num_tokens: int
    picture: Digest | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt as a chain of links; ``num_tokens`` counts all of it, what stands behind the last link too."""

    links: tuple[Link, ...]
    num_tokens: int


class ConversationRoutes(Routes[Conversation]):
    """Where calls to a language model go. Work and what is held are counted in tokens.

    Args:
        report_period_s: How often replicas report. A prompt counts as waiting until a report must have said whether it
            does.
    """

    def __init__(self, report_period_s: float) -> None:
        super().__init__()
        self._settles_after_s: Final = 2 * report_period_s

    def rank(self, item: Conversation, replicas: Collection[Replica], now_s: float) -> list[Replica]:
        """The cheapest first; among equals the one that holds least, so that conversations spread over an idle pool."""
        return sorted(replicas, key=lambda replica: (self.cost(item, replica, now_s), self._state(replica).held.weight))

    def cost(self, item: Conversation, replica: Replica, now_s: float) -> float:
        """Tokens' worth of work until a replica has begun to answer this."""
        state = self._state(replica)
        return self._prefill(item, state) + state.work.total(now_s) / max(1 - state.kv_use, MIN_FREE_KV)

    def report(self, replica: Replica, stats: Mapping[str, float], now_s: float) -> None:
        state = self._state(replica)
        state.work.report(stats["queued_tokens"] + RUNNING_TOKENS * (stats["waiting"] + stats["running"]), now_s)
        state.kv_use = stats["kv_use"]

    def _task(self, call: CallId, item: Conversation, state: ReplicaState, now_s: float) -> tuple[Hashable, Task]:
        return call, Task(RUNNING_TOKENS + self._prefill(item, state), RUNNING_TOKENS, now_s + self._settles_after_s)

    def _hold(self, item: Conversation, held: Held) -> None:
        for link in reversed(
            item.links
        ):  # the beginning is used last and so kept longest: what follows is nothing without it
            held.use(link.name, link.num_tokens)
            if link.picture is not None:
                held.use(link.picture, 0)

    def _prefill(self, item: Conversation, state: ReplicaState) -> float:
        """Tokens of a prompt that a replica has to compute, and what it has to fetch for them."""
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
    """Reads a call's prompt. The body is the client's, and nobody has validated it yet: whatever it holds makes a
    chain."""
    links, name = [], blake2b(cache_salt(call.body), digest_size=16).digest()
    segments = _segments_of_prompt(call.body)
    for kind, segment in islice(segments, MAX_LINKS):
        name = blake2b(name + kind.encode() + segment.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if kind == "picture":
            links.append(Link(name, settings.num_tokens(call.num_pixels.get(segment, 0)), segment))
        elif kind == "text":
            links.append(Link(name, _num_tokens(segment)))
    rest = sum(_num_tokens(segment) for _, segment in segments)
    return Conversation(tuple(links), sum(link.num_tokens for link in links) + rest)


def _num_tokens(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def _segments_of_prompt(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The prompt in order, as pairs of a kind and the segment: text, the digest of a picture, or whose words follow."""
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
    text = value if isinstance(value, str) else json.dumps(value)
    for start in range(0, len(text), CHUNK_CHARS):
        yield "text", text[start : start + CHUNK_CHARS]
