"""The way of a picture in a simulated cluster: from a decoder to an encoder, from there to a preprocessor, and back.

It follows ``EmbeddingCache`` and ``SingleFlight`` of ``cluster.embeddings``: callers share a run, and an encoder that
stands in for a picture's home gets the embedding from the replica that has it or makes it. Here that is known at once
in the whole pool, while the live encoders ask each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from cluster.routing.pictures import PictureWork, home

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from cluster.messages import Digest
    from cluster.scaling.simulation.engine import DecoderReplica
    from cluster.scaling.simulation.events import EventClock
    from cluster.scaling.simulation.prompts import SizedPicture
    from cluster.scaling.simulation.replicas import ReplicaPool
    from cluster.scaling.simulation.servers import EncoderReplica, PreprocessorReplica

    Ready = Callable[[dict[str, float]], None]
    """Is told the seconds that a picture waited in each pool."""


@dataclass(slots=True)
class _Pull:
    """A decoder's call for one picture."""

    decoder: DecoderReplica
    picture: SizedPicture
    call: str
    asked_s: float


@dataclass(slots=True)
class _Making:
    """A picture that an encoder makes now, and the calls that wait for it."""

    picture: SizedPicture
    encoder: EncoderReplica
    waits_s: dict[str, float]
    pulls: list[_Pull] = field(default_factory=list)


class PicturePath:
    """Gets pictures to decoders.

    Args:
        clock: The clock of the simulation.
        encoders: The pool of encoders.
        preprocessors: The pool of preprocessors.
        draw: The source of chance.
        path_s: Seconds on the way of a picture from an encoder in which no pool works for it.
    """

    def __init__(
        self,
        clock: EventClock,
        encoders: ReplicaPool[EncoderReplica],
        preprocessors: ReplicaPool[PreprocessorReplica],
        draw: random.Random,
        path_s: float = 0.0,
    ) -> None:
        self._clock: Final = clock
        self._encoders: Final = encoders
        self._preprocessors: Final = preprocessors
        self._draw: Final = draw
        self._path_s: Final = path_s
        self._makings: Final[dict[Digest, _Making]] = {}
        self._num_calls = 0
        self.num_made = 0
        """The pictures that encoders have begun to make."""

    def pull(self, decoder: DecoderReplica, picture: SizedPicture, ready: Ready) -> bool:
        """Gets a picture to a decoder: its embedding or, for a colocated decoder, its patches.

        Args:
            decoder: The decoder.
            picture: The picture.
            ready: Called when it is there, which may be at once.

        Returns:
            Whether the picture is new to the decoder and no other request is getting it.
        """
        if picture.digest in decoder.pictures:
            decoder.pictures.use(picture.digest, picture.num_tokens)
            ready({})
            return False
        if (others := decoder.pulls.get(picture.digest)) is not None:
            others.append(ready)
            return False
        decoder.pulls[picture.digest] = [ready]
        self._num_calls += 1
        pull = _Pull(decoder, picture, f"picture call {self._num_calls}", self._clock.now_s)
        if decoder.has_tower:
            self._prepare(picture, {}, partial(self._arrived, pull))
        else:
            work = PictureWork(picture.digest, picture.num_patches)
            self._encoders.call(partial(self._choose_encoder, pull, work), partial(self._begin, pull, work))
        return True

    def _choose_encoder(self, pull: _Pull, work: PictureWork, free: Sequence[EncoderReplica]) -> EncoderReplica:
        names = list(self._encoders.running)
        if len(names) == 1:
            return free[0]
        with_room = {one.name: one for one in free}
        order = pull.decoder.routes.rank(work, names, self._clock.now_s)
        return next(with_room[name] for name in order if name in with_room)

    def _begin(self, pull: _Pull, work: PictureWork, encoder: EncoderReplica) -> None:
        digest, now_s = work.digest, self._clock.now_s
        if len(self._encoders.running) > 1:
            pull.decoder.routes.sent(pull.call, work, encoder.name, now_s)
        if digest in encoder.held:
            encoder.held.use(digest, work.num_patches)
            self._answer(pull, encoder, {"encoder": now_s - pull.asked_s})
        elif (making := self._makings.get(digest)) is not None:
            if making.encoder is not encoder:
                self._encoders.release(encoder)
                self._encoders.move(making.encoder, lambda _: None)
            making.pulls.append(pull)
        elif digest in self._home(digest, encoder).held:
            encoder.held.use(digest, work.num_patches)
            self._answer(pull, encoder, {"encoder": now_s - pull.asked_s})
        else:
            self._make(pull, encoder)

    def _home(self, digest: Digest, encoder: EncoderReplica) -> EncoderReplica:
        running = self._encoders.running
        return running[home(digest, running)] if running else encoder

    def _make(self, pull: _Pull, encoder: EncoderReplica) -> None:
        self.num_made += 1
        picture = pull.picture
        making = _Making(picture, encoder, {"encoder": self._clock.now_s - pull.asked_s}, [pull])
        self._makings[picture.digest] = making
        encoder.expect(picture.num_patches)
        self._prepare(picture, making.waits_s, partial(self._encode, making))

    def _prepare(
        self, picture: SizedPicture, waits_s: dict[str, float], then: Callable[[dict[str, float]], None]
    ) -> None:
        """Has a preprocessor prepare a picture, notes how long that waited, and goes on."""
        asked_s = self._clock.now_s

        def begin(preprocessor: PreprocessorReplica) -> None:
            def started(_: float) -> None:
                waits_s["preprocessor"] = self._clock.now_s - asked_s

            def ended() -> None:
                self._preprocessors.release(preprocessor)
                then(waits_s)

            preprocessor.prepare(picture.num_pixels, started, ended)

        self._preprocessors.call(self._choose_preprocessor, begin)

    def _choose_preprocessor(self, free: Sequence[PreprocessorReplica]) -> PreprocessorReplica:
        """The less busy one of two that are drawn, as Serve chooses by default."""
        two = free if len(free) < 2 else self._draw.sample(free, 2)
        return min(two, key=lambda one: one.num_ongoing)

    def _encode(self, making: _Making, waits_s: dict[str, float]) -> None:
        def started(wait_s: float) -> None:
            waits_s["encoder"] += wait_s

        making.encoder.encode(making.picture.num_patches, started, partial(self._made, making))

    def _made(self, making: _Making) -> None:
        picture = making.picture
        del self._makings[picture.digest]
        making.encoder.held.use(picture.digest, picture.num_patches)
        for pull in making.pulls:
            self._answer(pull, making.encoder, making.waits_s)

    def _answer(self, pull: _Pull, encoder: EncoderReplica, waits_s: dict[str, float]) -> None:
        self._encoders.release(encoder)
        pull.decoder.routes.ended(pull.call)
        if self._path_s:
            self._clock.after(self._path_s, partial(self._arrived, pull, waits_s))
        else:
            self._arrived(pull, waits_s)

    def _arrived(self, pull: _Pull, waits_s: dict[str, float]) -> None:
        pull.decoder.pictures.use(pull.picture.digest, pull.picture.num_tokens)
        for ready in pull.decoder.pulls.pop(pull.picture.digest):
            ready(waits_s)
