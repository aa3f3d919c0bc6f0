"""Encoder routing: chooses an encoder for each picture.

In: a picture, the replicas of the pool, their reports, and the time. Out: the replicas, best first.

A picture that a replica has cached, or is encoding, goes to that replica, because it costs no work there. A new picture
goes to its home, which is the first replica by rendezvous hashing. If the home has more than ``load_factor`` times the
mean work, counted in patches, the picture goes to the next replica in that order.

Each caller knows only a part of the work that other callers cause. So two callers may send one picture to two replicas;
``cluster.embeddings.single_flight`` then prevents a second run.

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
    """The replicas in this key's own order of preference. A replica more or less moves only 1/n of all keys."""
    return sorted(replicas, key=partial(_rank, key))


def home(key: str, replicas: Collection[Replica]) -> Replica:
    """The key's home: the replica that everyone asks first. Equals ``rendezvous(key, replicas)[0]``."""
    return min(replicas, key=partial(_rank, key))


def _rank(key: str, replica: Replica) -> bytes:
    return blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()


def within_bound(order: Sequence[Replica], work: Mapping[Replica, float], factor: float) -> list[Replica]:
    """The same replicas, with the overloaded ones moved to the end.

    A replica is overloaded if it has more than ``factor`` times the mean work. The others keep their order; the
    overloaded ones are sorted by work, the least first. With a factor of 1 or more, at least one replica is not
    overloaded, so the first replica of the result never is.

    Args:
        order: The replicas.
        work: The work of each replica, in any unit.
        factor: The bound on the work of one replica, in multiples of the mean.
    """
    limit = factor * sum(work[replica] for replica in order) / max(len(order), 1)
    within = [replica for replica in order if work[replica] <= limit]
    return within + sorted((replica for replica in order if work[replica] > limit), key=work.__getitem__)


@dataclass(frozen=True, slots=True)
class PictureWork:
    """A picture as routing sees it: its digest, and the number of patches that the vision tower computes for it."""

    digest: Digest
    num_patches: int


class PictureRoutes(Routes[PictureWork]):
    """Chooses an encoder for each picture. Work and cache contents are counted in patches.

    Args:
        load_factor: A new picture goes to its home as long as the home has at most this many times the mean work.
    """

    def __init__(self, load_factor: float) -> None:
        super().__init__()
        self._load_factor: Final = load_factor

    def rank(self, item: PictureWork, replicas: Collection[Replica], now_s: float) -> list[Replica]:
        """The replicas: first those that have or make the embedding, then by rendezvous order, then the overloaded."""
        work = {replica: self._state(replica).work.total(now_s) for replica in replicas}
        order = within_bound(rendezvous(item.digest, replicas), work, self._load_factor)
        return sorted(order, key=lambda replica: not self._has(replica, item.digest))

    def report(self, replica: Replica, stats: Mapping[str, float], now_s: float) -> None:
        """Notes an encoder's report: ``patches`` that wait or run there, with each picture counted once."""
        self._state(replica).work.report(stats["patches"], now_s)

    def _task(self, call: CallId, item: PictureWork, state: ReplicaState, now_s: float) -> tuple[Hashable, Task]:  # noqa: ARG002
        weight = 0 if item.digest in state.held else item.num_patches
        return item.digest, Task(weight, weight)

    def _hold(self, item: PictureWork, held: Held) -> None:
        held.use(item.digest, item.num_patches)

    def _has(self, replica: Replica, digest: Digest) -> bool:
        state = self._state(replica)
        return digest in state.work or digest in state.held
