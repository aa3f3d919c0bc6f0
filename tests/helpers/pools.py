"""Simulated pools for tests of the scaling policy. Work is a continuous quantity in them, without single requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.scaling.policy import PoolReading
from cluster.scaling.rates import Offered, Served

if TYPE_CHECKING:
    from cluster.scaling.policy import Decision

ROUTER = "router"


@dataclass
class FluidPool:
    """A pool whose waiting work is divided evenly among its replicas.

    Args:
        velocity: The work that one replica does per second.
        lead_s: How long a replica takes to start.
        num_replicas: The replicas that run at the beginning.
        bounds: The fewest and the most replicas.
        room: The most replicas that can ever run, as if the cluster had no more GPUs.
    """

    velocity: float
    lead_s: float
    num_replicas: int = 1
    bounds: tuple[int, int] = (1, 20)
    room: int = 1000
    offered: float = 0.0
    waiting: float = 0.0
    starts_s: list[float] = field(default_factory=list)
    served: dict[str, Served] = field(default_factory=dict)
    num_ever: int = 0

    def __post_init__(self) -> None:
        self.target = self.num_replicas
        self.running = [self._name() for _ in range(self.num_replicas)]

    def _name(self) -> str:
        self.num_ever += 1
        return f"replica {self.num_ever}"

    def step(self, now_s: float, step_s: float, work_per_s: float) -> None:
        """Lets work arrive and be done for a moment, and lets replicas start."""
        while self.starts_s and self.starts_s[0] <= now_s and len(self.running) < self.room:
            self.starts_s.pop(0)
            self.running.append(self._name())
        self.offered += work_per_s * step_s
        self.waiting += work_per_s * step_s
        done = min(self.waiting, self.velocity * step_s * len(self.running))
        self.waiting -= done
        for name in self.running:
            before = self.served.get(name, Served(now_s, 0.0, 0.0))
            share = done / len(self.running)
            self.served[name] = Served(
                now_s, before.work + share, before.busy_s + share / self.velocity, self.waiting / len(self.running)
            )

    def reading(self, now_s: float) -> PoolReading:
        """Returns what the policy would see."""
        return PoolReading(
            running=frozenset(self.running),
            target=self.target,
            min_replicas=self.bounds[0],
            max_replicas=self.bounds[1],
            sources=frozenset({ROUTER}),
            offered={ROUTER: Offered(now_s, self.offered)},
            served={name: self.served.get(name, Served(now_s, 0.0, 0.0)) for name in self.running},
        )

    def apply(self, decision: Decision, now_s: float) -> None:
        """Does what was decided: starts take their time, and ends are at once."""
        self.target = decision.target
        missing = self.target - len(self.running) - len(self.starts_s)
        self.starts_s += [now_s + self.lead_s] * max(0, missing)
        while len(self.running) > self.target:
            self.running.pop()
