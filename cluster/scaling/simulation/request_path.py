"""The way of requests through a simulated cluster, from their arrival to the last token of their answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from cluster.scaling.simulation.engine import EngineSequence
from cluster.scaling.simulation.outcomes import RequestOutcome
from cluster.scaling.simulation.prompts import PromptMaker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.messages import Digest
    from cluster.scaling.schedules.schedule import Arrival
    from cluster.scaling.simulation.engine import DecoderReplica
    from cluster.scaling.simulation.prompts import Prompt, SizedPicture
    from cluster.scaling.simulation.servers import RouterReplica
    from cluster.scaling.simulation.simulated import SimulatedCluster
    from cluster.scaling.simulation.speeds import Speeds


@dataclass(slots=True)
class _Request:
    """A request on its way: its call, its prompt, the time since which it waits, and the pictures that it lacks."""

    call: str
    prompt: Prompt
    outcome: RequestOutcome
    since_s: float
    num_missing: int = 0
    to_encode: set[Digest] = field(default_factory=set)

    def note(self, pool: str, wait_s: float) -> None:
        """Notes that it waited in a pool."""
        self.outcome.waits_s[pool] = self.outcome.waits_s.get(pool, 0.0) + wait_s


class RequestPath:
    """Lets the requests of a schedule arrive, and notes their times.

    Args:
        cluster: The cluster.
        arrivals: The arrivals of the schedule.
        speeds: The speeds and limits of the replicas.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        arrivals: Sequence[Arrival],
        speeds: Speeds,
    ) -> None:
        self._cluster: Final = cluster
        self._clock: Final = cluster.clock
        self._arrivals: Final = arrivals
        self.outcomes: Final = [RequestOutcome(one.at_s, one.output_tokens) for one in arrivals]
        self._prompts: Final = PromptMaker(speeds.processor)
        self._kv_tokens: Final = speeds.decoder.kv_tokens
        self._max_in_flight: Final = speeds.router.max_in_flight
        self._path_s: Final = speeds.request_path_s
        self.num_ended = 0

    def start(self) -> None:
        """Begins with the first arrival."""
        self._arrive(0)

    def _arrive(self, number: int) -> None:
        if number < len(self._arrivals):
            self._clock.at(self._arrivals[number].at_s, partial(self._arrived, number))

    def _arrived(self, number: int) -> None:
        arrival, outcome = self._arrivals[number], self.outcomes[number]
        prompt = self._prompts.prompt(arrival)
        if prompt.num_tokens + arrival.output_tokens > self._kv_tokens:
            outcome.ending = "too long"
            self.num_ended += 1
        else:
            request = _Request(f"call {number}", prompt, outcome, self._clock.now_s)
            # HAProxy takes the Router with the fewest connections.
            self._cluster.routers.call(
                lambda free: min(free, key=lambda one: one.num_ongoing), partial(self._at_router, request)
            )
        self._arrive(number + 1)

    def _at_router(self, request: _Request, router: RouterReplica) -> None:
        if router.num_ongoing > self._max_in_flight:
            request.outcome.ending = "overloaded"
            self.num_ended += 1
            self._cluster.routers.release(router)
            return
        pixels = [picture.num_pixels for picture in request.prompt.pictures]
        router.read(pixels, partial(request.note, "router"), partial(self._read, request, router))

    def _read(self, request: _Request, router: RouterReplica) -> None:
        if self._path_s:
            self._clock.after(self._path_s, partial(self._call, request, router))
        else:
            self._call(request, router)

    def _call(self, request: _Request, router: RouterReplica) -> None:
        request.since_s = self._clock.now_s
        self._cluster.decoders.call(
            partial(self._choose_decoder, request, router), partial(self._at_decoder, request, router)
        )

    def _choose_decoder(
        self, request: _Request, router: RouterReplica, free: Sequence[DecoderReplica]
    ) -> DecoderReplica:
        names = list(self._cluster.decoders.running)
        if len(names) == 1:
            return free[0]
        with_room = {one.name: one for one in free}
        order = router.routes.rank(request.prompt.conversation, names, self._clock.now_s)
        return next(with_room[name] for name in order if name in with_room)

    def _at_decoder(self, request: _Request, router: RouterReplica, decoder: DecoderReplica) -> None:
        now_s, pictures = self._clock.now_s, request.prompt.pictures
        request.note("decoder", now_s - request.since_s)
        if len(self._cluster.decoders.running) > 1:
            router.routes.sent(request.call, request.prompt.conversation, decoder.name, now_s)
        request.num_missing = len(pictures)
        if not pictures:
            self._decode(request, router, decoder)
        for picture in pictures:
            self._pull(request, router, decoder, picture)

    def _pull(self, request: _Request, router: RouterReplica, decoder: DecoderReplica, picture: SizedPicture) -> None:
        def ready(waits_s: dict[str, float]) -> None:
            request.num_missing -= 1
            if not request.num_missing:
                for pool, wait_s in waits_s.items():
                    request.note(pool, wait_s)
                # Only now: the call that pulls the last picture returns first whether that picture is new.
                self._clock.at(self._clock.now_s, partial(self._decode, request, router, decoder))

        if self._cluster.pictures.pull(decoder, picture, ready) and decoder.has_tower:
            request.to_encode.add(picture.digest)

    def _decode(self, request: _Request, router: RouterReplica, decoder: DecoderReplica) -> None:
        sequence = EngineSequence(
            request.prompt,
            request.outcome.output_tokens,
            started=partial(request.note, "decoder"),
            answered=partial(self._answered, request),
            ended=partial(self._ended, request, router, decoder),
        )
        decoder.add(sequence, request.to_encode)

    def _answered(self, request: _Request) -> None:
        request.outcome.ttft_s = self._clock.now_s - request.outcome.at_s

    def _ended(self, request: _Request, router: RouterReplica, decoder: DecoderReplica) -> None:
        outcome = request.outcome
        outcome.ending, outcome.latency_s = "answered", self._clock.now_s - outcome.at_s
        self.num_ended += 1
        router.routes.ended(request.call)
        router.stream(outcome.output_tokens)
        self._cluster.decoders.release(decoder)
        self._cluster.routers.release(router)
