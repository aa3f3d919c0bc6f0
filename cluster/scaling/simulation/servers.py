"""Simulated replicas: the Router, the preprocessor and the vision encoder. ``engine.py`` has the decoder.

Each replica counts what the live one counts for the policy. Work and busy time are counted at the end of each piece of
work.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from cluster.encode.batching import Waiting, take, wait_s
from cluster.routing.conversations import ConversationRoutes
from cluster.routing.ledger import Held
from cluster.scaling.rates import Offered, Served

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cluster.messages import Replica
    from cluster.scaling.simulation.events import EventClock
    from cluster.scaling.simulation.speeds import EncoderSpeeds, PreprocessorSpeeds, RouterSpeeds

    Started = Callable[[float], None]
    """Is told how long a piece of work has waited, in seconds."""


class SimReplica:
    """A replica of any pool, and its counters.

    Args:
        name: The name of the replica.
        clock: The clock of the simulation.
    """

    def __init__(self, name: Replica, clock: EventClock) -> None:
        self.name: Final = name
        self.clock: Final = clock
        self.num_ongoing = 0
        """Calls that this replica has accepted and not answered."""
        self.offered = 0.0
        """Work that has arrived, in the unit of the pool."""
        self.done = 0.0
        """Work that is done, in the unit of the pool."""
        self.busy_s = 0.0
        """Seconds of that work."""

    @property
    def waiting(self) -> float:
        """The work that waits, in the unit of the pool."""
        return 0.0

    @property
    def fullness(self) -> float:
        """The share of the room that is used, from 0 to 1."""
        return 0.0

    def counters(self) -> tuple[Offered, Served]:
        """The counters as the policy gets them."""
        now_s = self.clock.now_s
        return Offered(now_s, self.offered), Served(now_s, self.done, self.busy_s, self.waiting, self.fullness)


class OneThread(SimReplica):
    """A replica that does one piece of work after the other, in the order of arrival."""

    def __init__(self, name: Replica, clock: EventClock) -> None:
        super().__init__(name, clock)
        self._queue: Final[deque[tuple[float, float, float, Started, Callable[[], None]]]] = deque()
        self._queued_work = 0.0
        self._is_busy = False

    @property
    def waiting(self) -> float:
        return self._queued_work

    def work(self, amount: float, duration_s: float, started: Started, ended: Callable[[], None]) -> None:
        """Takes a piece of work.

        Args:
            amount: Its size, in the unit of the pool.
            duration_s: Its duration in seconds.
            started: Called when it starts.
            ended: Called when it is done.
        """
        self._queue.append((self.clock.now_s, amount, duration_s, started, ended))
        self._queued_work += amount
        if not self._is_busy:
            self._next()

    def _next(self) -> None:
        self._is_busy = bool(self._queue)
        if not self._is_busy:
            return
        arrived_s, amount, duration_s, started, ended = self._queue.popleft()
        self._queued_work -= amount
        started(self.clock.now_s - arrived_s)
        self.clock.after(duration_s, partial(self._end, amount, duration_s, ended))

    def _end(self, amount: float, duration_s: float, ended: Callable[[], None]) -> None:
        self.done += amount
        self.busy_s += duration_s
        ended()
        self._next()


class RouterReplica(OneThread):
    """A Router. Its work is counted in requests. ``routes`` is its own view of the decoders."""

    def __init__(self, name: Replica, clock: EventClock, speeds: RouterSpeeds, report_period_s: float) -> None:
        super().__init__(name, clock)
        self._speeds: Final = speeds
        self.routes: Final = ConversationRoutes(report_period_s)

    @property
    def is_full(self) -> bool:
        """Whether it would refuse one more request."""
        return self.num_ongoing >= self._speeds.max_in_flight

    @property
    def fullness(self) -> float:
        return self.num_ongoing / self._speeds.max_in_flight

    def read(self, pixels: Sequence[int], started: Started, ended: Callable[[], None]) -> None:
        """Reads a request.

        Args:
            pixels: The pixels of each of its pictures.
            started: Called when it starts.
            ended: Called when the request can go to a decoder.
        """
        self.offered += 1
        speeds = self._speeds
        pictures_s = len(pixels) * speeds.picture_s + sum(pixels) * speeds.pixel_s
        self.work(1, speeds.request_s + pictures_s, started, ended)

    def stream(self, num_tokens: int) -> None:
        """Sends an answer. All of its CPU time is spent at its end, in one piece."""
        self.work(0, num_tokens * self._speeds.token_s, lambda _: None, lambda: None)


class PreprocessorReplica(OneThread):
    """A preprocessor. Its work is counted in pixels of the pictures as the clients sent them."""

    def __init__(self, name: Replica, clock: EventClock, speeds: PreprocessorSpeeds) -> None:
        super().__init__(name, clock)
        self._speeds: Final = speeds

    def prepare(self, num_pixels: int, started: Started, ended: Callable[[], None]) -> None:
        """Prepares a picture."""
        self.offered += num_pixels
        self.work(num_pixels, self._speeds.picture_s + num_pixels * self._speeds.pixel_s, started, ended)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture in a batch queue."""

    waiting: Waiting
    started: Started
    ended: Callable[[], None]


class EncoderReplica(SimReplica):
    """A vision encoder. Its work is counted in patches. ``held`` has the pictures whose embeddings it keeps."""

    def __init__(self, name: Replica, clock: EventClock, speeds: EncoderSpeeds) -> None:
        super().__init__(name, clock)
        self._speeds: Final = speeds
        self.held: Final = Held()
        self.held.capacity = speeds.cache_patches
        self._queue: list[_Picture] = []
        self._num_coming = 0
        self._is_running = False
        self._num_queued_patches = 0
        self.num_open_patches = 0
        """Patches of the pictures that are prepared, wait or run for this encoder."""

    @property
    def waiting(self) -> float:
        return self._num_queued_patches

    def expect(self, num_patches: int) -> None:
        """Notes that a picture is on its way here, from a preprocessor."""
        self.offered += num_patches
        self.num_open_patches += num_patches
        self._num_coming += 1

    def encode(self, num_patches: int, started: Started, ended: Callable[[], None]) -> None:
        """Takes a picture that was expected."""
        self._num_coming -= 1
        self._num_queued_patches += num_patches
        self._queue.append(_Picture(Waiting(num_patches, self.clock.now_s), started, ended))
        self._begin()

    def _begin(self) -> None:
        """Starts a run if the tower is free and need not wait for more pictures."""
        if self._is_running or not self._queue:
            return
        speeds, pictures = self._speeds, [one.waiting for one in self._queue]
        delay_s = wait_s(
            pictures,
            now_s=self.clock.now_s,
            num_coming=self._num_coming,
            budget_patches=speeds.batch_patches,
        )
        if delay_s > 1e-9:  # a shorter one is an error of rounding, and would never end
            self.clock.after(delay_s, self._begin)
            return
        chosen = set(take(pictures, budget_patches=speeds.batch_patches, patch_s=speeds.patch_s))
        batch = [one for index, one in enumerate(self._queue) if index in chosen]
        self._queue = [one for index, one in enumerate(self._queue) if index not in chosen]
        for one in batch:
            one.started(self.clock.now_s - one.waiting.arrived_s)
        self._is_running = True
        num_patches = sum(one.waiting.num_patches for one in batch)
        duration_s = speeds.run_s + num_patches * speeds.patch_s
        self.clock.after(duration_s, partial(self._end, batch, num_patches, duration_s))

    def _end(self, batch: list[_Picture], num_patches: int, duration_s: float) -> None:
        self.done += num_patches
        self.busy_s += duration_s
        self._num_queued_patches -= num_patches
        self.num_open_patches -= num_patches
        self._is_running = False
        for one in batch:
            one.ended()
        self._begin()
