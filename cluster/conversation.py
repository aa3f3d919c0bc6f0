"""A call as routing sees it: the chain of what leads up to each point of its prompt, and how many tokens stand there.

In: a ``Call``. Out: a ``Conversation``, whose links name whole prefixes, as vLLM's prefix cache does with its blocks: two
conversations share a link if, and only if, they are alike up to there. The next turn of one begins with all its links.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from cluster.messages import cache_salt, is_picture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cluster.config import ProcessorSettings
    from cluster.messages import Call, Digest

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


def read_conversation(call: Call, settings: ProcessorSettings) -> Conversation:
    """Reads a call's prompt. The body is the client's, and nobody has validated it yet: whatever it holds makes a chain."""
    links, name = [], blake2b(cache_salt(call.body), digest_size=16).digest()
    pieces = _pieces(call.body)
    for kind, piece in islice(pieces, MAX_LINKS):
        name = blake2b(name + kind.encode() + piece.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if kind == "picture":
            links.append(Link(name, settings.num_tokens(call.num_pixels.get(piece, 0)), piece))
        elif kind == "text":
            links.append(Link(name, _num_tokens(piece)))
    rest = sum(_num_tokens(piece) for _, piece in pieces)
    return Conversation(tuple(links), sum(link.num_tokens for link in links) + rest)


def _num_tokens(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def _pieces(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The prompt in order, as pairs of a kind and the piece: text, the digest of a picture, or whose words follow."""
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
