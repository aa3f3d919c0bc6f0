"""Encoder routing: which encoder a picture goes to.

In: a picture, the pool's replicas, what they report, and the time. Out: the replicas, the best one first.

A picture that a replica holds, or works on, goes there: it costs no work. A new one goes to its home by rendezvous
hashing, unless that has more than ``load_factor`` times the mean work, counted in patches; then to the next in line.
Each caller knows of others' work what it has heard, and two may send one picture to two replicas: see
``cluster.embeddings.single_flight``.

Source: rendezvous hashing is Thaler and Ravishankar's (1998); the bound is that of consistent hashing with bounded
    loads (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from cluster.routing.ledger import CallId, Held, ReplicaState, Routes, Task

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    from cluster.messages import Digest, Replica


def rendezvous(key: str, replicas: Collection[Replica]) -> list[Replica]:
    """The replicas in the order in which they are to have a key; one more or less moves 1/n of all keys."""
    return sorted(replicas, key=partial(_rank, key))


def home(key: str, replicas: Collection[Replica]) -> Replica:
    """The first of them, for whoever has a key is to be known there."""
    return min(replicas, key=partial(_rank, key))


def _rank(key: str, replica: Replica) -> bytes:
    return blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()


def within_bound(order: Sequence[Replica], work: Mapping[Replica, float], factor: float) -> list[Replica]:
    """The same replicas, but those with more than ``factor`` times the mean work behind the others, the least loaded
    first.

    With a factor of 1 or more somebody is always within the bound, so that no replica over it is given a call.
    """
    limit = factor * sum(work[replica] for replica in order) / max(len(order), 1)
    within = [replica for replica in order if work[replica] <= limit]
    return within + sorted((replica for replica in order if work[replica] > limit), key=work.__getitem__)


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
        work = {replica: self._state(replica).work.total(now_s) for replica in replicas}
        order = within_bound(rendezvous(item.digest, replicas), work, self._load_factor)
        return sorted(order, key=lambda replica: not self._has(replica, item.digest))

    def report(self, replica: Replica, stats: Mapping[str, float], now_s: float) -> None:
        self._state(replica).work.report(stats["patches"], now_s)

    def _task(self, call: CallId, item: PictureWork, state: ReplicaState, now_s: float) -> tuple[Hashable, Task]:  # noqa: ARG002
        weight = 0 if item.digest in state.held else item.num_patches
        return item.digest, Task(weight, weight)

    def _hold(self, item: PictureWork, held: Held) -> None:
        held.use(item.digest, item.num_patches)

    def _has(self, replica: Replica, digest: Digest) -> bool:
        state = self._state(replica)
        return digest in state.work or digest in state.held
