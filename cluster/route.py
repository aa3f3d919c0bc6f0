"""Routing choice: which replica of a pool a call goes to, from what each replica holds already and the work that waits there.

In: a picture or a conversation, the pool's replicas, what they report, and the time. Out: the replicas, the best one first.

**Encoders.** A picture that a replica holds, or works on, goes there: it costs no work. A new one goes to its home by
rendezvous hashing, unless that has more than ``load_factor`` times the mean work, counted in patches; then to the next in line.
Each caller knows of others' work what it has heard, and two may send one picture to two replicas: see ``single_flight``.

**Decoders.** A call goes where it is done soonest, counted in tokens to prefill: what of its prompt is not in the replica's KV
cache, and what the replica has before it.

Source: rendezvous hashing is Thaler and Ravishankar's (1998); the bound is that of consistent hashing with bounded loads
(Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cluster.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    from cluster.messages import Digest, Replica

CallId = str
Item = TypeVar("Item")

MAX_HELD: Final = 65_536
"""Names that are remembered for one replica, in about 10 MB."""
RUNNING_TOKENS: Final = 128
"""What a request costs its decoder beside its prompt, until it ends: about half of a usual answer."""
FETCH_SHARE: Final = 0.1
"""What it costs to bring an embedding to a decoder that has not had it, as a share of its prefill."""
PREFIX_SHARE: Final = 0.5
"""From this share of the prompt on, a prefix draws a call to where it is cached. A short system prompt that all conversations
have in common must not keep them together."""
MIN_FREE_KV: Final = 0.05
"""The fuller a decoder's KV cache, the more its work weighs: by 1 / free, and no more than 20 times."""


def rendezvous(key: str, replicas: Collection[Replica]) -> list[Replica]:
    """The replicas in the order in which they are to have a key; one more or less moves 1/n of all keys."""
    return sorted(replicas, key=partial(_rank, key))


def home(key: str, replicas: Collection[Replica]) -> Replica:
    """The first of them, for whoever has a key is to be known there."""
    return min(replicas, key=partial(_rank, key))


def _rank(key: str, replica: Replica) -> bytes:
    return blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()


def within_bound(order: Sequence[Replica], work: Mapping[Replica, float], factor: float) -> list[Replica]:
    """The same replicas, but those with more than ``factor`` times the mean work behind the others, the least loaded first.

    With a factor of 1 or more somebody is always within the bound, so that no replica over it is given a call.
    """
    limit = factor * sum(work[replica] for replica in order) / max(len(order), 1)
    within = [replica for replica in order if work[replica] <= limit]
    return within + sorted((replica for replica in order if work[replica] > limit), key=work.__getitem__)


class Held:
    """What one replica's cache should hold, by name: what was not used for longest goes first, as it does there."""

    def __init__(self) -> None:
        self.capacity = math.inf
        self.weight = 0.0
        self._names: Final[OrderedDict[Hashable, float]] = OrderedDict()

    def __contains__(self, name: Hashable) -> bool:
        return name in self._names

    def use(self, name: Hashable, weight: float) -> None:
        """It is used now, and held from now on. The weights of all that is held come to ``capacity`` at the most."""
        self.weight += weight - self._names.pop(name, 0.0)
        self._names[name] = weight
        while self.weight > self.capacity or len(self._names) > MAX_HELD:
            self.weight -= self._names.popitem(last=False)[1]


@dataclass(slots=True)
class Piece:
    """Work that this process gave to a replica; ``num_calls`` share it. From ``settles_at_s`` on it weighs ``settled``."""

    weight: float
    settled: float
    settles_at_s: float = math.inf
    num_calls: int = 0


class Work:
    """What one replica has to do: what this process sent there and has not seen end, and what others sent.

    The others' is what the replica reports beyond the most that this process had there since the report before: a report is
    old when it comes, and of our own calls we know better.
    """

    def __init__(self) -> None:
        self._pieces: Final[dict[Hashable, Piece]] = {}
        self._others = 0.0
        self._peak = 0.0

    def __contains__(self, name: Hashable) -> bool:
        return name in self._pieces

    def begin(self, name: Hashable, piece: Piece, now_s: float) -> None:
        """A call is sent. Calls of one name share one piece."""
        self._pieces.setdefault(name, piece).num_calls += 1
        self._peak = max(self._peak, self._own(now_s))

    def end(self, name: Hashable) -> None:
        """A call of this name is over."""
        piece = self._pieces[name]
        piece.num_calls -= 1
        if not piece.num_calls:
            del self._pieces[name]

    def report(self, total: float, now_s: float) -> None:
        """The replica says how much it has to do, for this process and all others."""
        own = self._own(now_s)
        self._others = max(0.0, total - max(self._peak, own))
        self._peak = own

    def total(self, now_s: float) -> float:
        """All of it, in the unit of the weights."""
        return self._others + self._own(now_s)

    def _own(self, now_s: float) -> float:
        return sum(piece.weight if now_s < piece.settles_at_s else piece.settled for piece in self._pieces.values())


@dataclass(slots=True)
class Place:
    """What is known of one replica."""

    work: Work = field(default_factory=Work)
    held: Held = field(default_factory=Held)
    kv_use: float = 0.0


class Routes(ABC, Generic[Item]):
    """One process's view of a pool. Every call is ``sent`` and ``ended``."""

    def __init__(self) -> None:
        self._places: Final[dict[Replica, Place]] = {}
        self._calls: Final[dict[CallId, tuple[Replica, Hashable]]] = {}

    @abstractmethod
    def rank(self, item: Item, replicas: Collection[Replica], now_s: float) -> list[Replica]:
        """The replicas, the best one for this item first."""

    def sent(self, call: CallId, item: Item, replica: Replica, now_s: float, *, is_sure: bool = True) -> None:
        """A call goes to a replica, which will hold what it needs if that is sure. Said again, it goes to this one instead."""
        place = self._place(replica)
        if self._calls.get(call, ("", None))[0] != replica:
            self.ended(call)
            name, piece = self._piece(call, item, place, now_s)
            self._calls[call] = (replica, name)
            place.work.begin(name, piece, now_s)
        if is_sure:
            self._hold(item, place.held)

    @abstractmethod
    def report(self, replica: Replica, stats: Mapping[str, float], now_s: float) -> None:
        """A replica says what it has to do, for all who send to it."""

    def describe(self, replica: Replica, *, max_held: float) -> None:
        """How much a replica can hold: patches whose embeddings an encoder keeps, tokens in a decoder's KV cache."""
        self._place(replica).held.capacity = max_held

    def ended(self, call: CallId) -> None:
        """The call is over, or went nowhere. One that is not known is none of ours."""
        replica, name = self._calls.pop(call, ("", None))
        if replica in self._places and name in (work := self._places[replica].work):
            work.end(name)

    def retain(self, replicas: Collection[Replica]) -> None:
        """Forgets the replicas that are gone."""
        for replica in self._places.keys() - set(replicas):
            del self._places[replica]

    def _place(self, replica: Replica) -> Place:
        if (place := self._places.get(replica)) is None:
            place = self._places[replica] = Place()
        return place

    @abstractmethod
    def _piece(self, call: CallId, item: Item, place: Place, now_s: float) -> tuple[Hashable, Piece]:
        """The name of the work that a call is for a replica, and what it weighs."""

    @abstractmethod
    def _hold(self, item: Item, held: Held) -> None:
        """Notes what a replica holds once it has worked on this."""


@dataclass(frozen=True, slots=True)
class PictureWork:
    """A picture as routing sees it."""

    digest: Digest
    num_patches: int


class PictureRoutes(Routes[PictureWork]):
    """Where pictures go. Work and what is held are counted in patches.

    Args:
        load_factor: How many times the mean work a replica may have, and still be given the new pictures at home there.
    """

    def __init__(self, load_factor: float) -> None:
        super().__init__()
        self._load_factor: Final = load_factor

    def rank(self, item: PictureWork, replicas: Collection[Replica], now_s: float) -> list[Replica]:
        work = {replica: self._place(replica).work.total(now_s) for replica in replicas}
        order = within_bound(rendezvous(item.digest, replicas), work, self._load_factor)
        return sorted(order, key=lambda replica: not self._has(replica, item.digest))

    def report(self, replica: Replica, stats: Mapping[str, float], now_s: float) -> None:
        self._place(replica).work.report(stats["patches"], now_s)

    def _piece(self, call: CallId, item: PictureWork, place: Place, now_s: float) -> tuple[Hashable, Piece]:  # noqa: ARG002
        weight = 0 if item.digest in place.held else item.num_patches
        return item.digest, Piece(weight, weight)

    def _hold(self, item: PictureWork, held: Held) -> None:
        held.use(item.digest, item.num_patches)

    def _has(self, replica: Replica, digest: Digest) -> bool:
        place = self._place(replica)
        return digest in place.work or digest in place.held


class ConversationRoutes(Routes[Conversation]):
    """Where calls to a language model go. Work and what is held are counted in tokens.

    Args:
        report_period_s: How often replicas report. A prompt counts as waiting until a report must have said whether it does.
    """

    def __init__(self, report_period_s: float) -> None:
        super().__init__()
        self._settles_after_s: Final = 2 * report_period_s

    def rank(self, item: Conversation, replicas: Collection[Replica], now_s: float) -> list[Replica]:
        """The cheapest first; among equals the one that holds least, so that conversations spread over an idle pool."""
        return sorted(replicas, key=lambda replica: (self.cost(item, replica, now_s), self._place(replica).held.weight))

    def cost(self, item: Conversation, replica: Replica, now_s: float) -> float:
        """Tokens' worth of work until a replica has begun to answer this."""
        place = self._place(replica)
        return self._prefill(item, place) + place.work.total(now_s) / max(1 - place.kv_use, MIN_FREE_KV)

    def report(self, replica: Replica, stats: Mapping[str, float], now_s: float) -> None:
        place = self._place(replica)
        place.work.report(stats["queued_tokens"] + RUNNING_TOKENS * (stats["waiting"] + stats["running"]), now_s)
        place.kv_use = stats["kv_use"]

    def _piece(self, call: CallId, item: Conversation, place: Place, now_s: float) -> tuple[Hashable, Piece]:
        return call, Piece(RUNNING_TOKENS + self._prefill(item, place), RUNNING_TOKENS, now_s + self._settles_after_s)

    def _hold(self, item: Conversation, held: Held) -> None:
        for link in reversed(item.links):  # the beginning is used last and so kept longest: what follows is nothing without it
            held.use(link.name, link.num_tokens)
            if link.picture is not None:
                held.use(link.picture, 0)

    def _prefill(self, item: Conversation, place: Place) -> float:
        """Tokens of a prompt that a replica has to compute, and what it has to fetch for them."""
        num_cached = sum(link.num_tokens for link in takewhile(lambda link: link.name in place.held, item.links))
        if num_cached < PREFIX_SHARE * item.num_tokens:
            num_cached = 0
        passed, fetched = 0, 0
        for link in item.links:
            passed += link.num_tokens
            if passed > num_cached and link.picture is not None and link.picture not in place.held:
                fetched += link.num_tokens
        return item.num_tokens - num_cached + FETCH_SHARE * fetched
