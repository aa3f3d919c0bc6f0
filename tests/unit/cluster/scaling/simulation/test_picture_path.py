"""The way of pictures in a simulated cluster, with times computed by hand."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cluster.routing.pictures import home
from cluster.scaling.simulation.prompts import SizedPicture
from cluster.scaling.simulation.simulated import SimulatedCluster
from tests.helpers.simulated import PATCHES, PIXELS, ROUND, TOKENS, sizes

if TYPE_CHECKING:
    from cluster.scaling.simulation.speeds import Speeds


def with_encoders(**changes: int) -> Speeds:
    """Returns the round speeds with other limits of the encoders."""
    return ROUND.model_copy(update={"encoder": ROUND.encoder.model_copy(update=changes)})


class Pulls:
    """A cluster, and the pictures that its decoders got: their times and waits."""

    def __init__(self, speeds: Speeds = ROUND, *, encoder: int = 1, decoder: int = 1) -> None:
        self.cluster = SimulatedCluster(speeds, sizes(encoder=encoder, decoder=decoder), random.Random(0))
        self.decoders = list(self.cluster.decoders.running.values())
        self.got: list[tuple[float, dict[str, float]]] = []

    def pull(self, at_s: float, name: str, decoder: int = 0) -> None:
        """Has a decoder pull a picture at a time."""

        def ready(waits_s: dict[str, float]) -> None:
            self.got.append((round(self.cluster.clock.now_s, 6), dict(waits_s)))

        def ask() -> None:
            self.cluster.pictures.pull(self.decoders[decoder], SizedPicture(name, PIXELS, PATCHES, TOKENS), ready)

        self.cluster.clock.at(at_s, ask)

    def times(self) -> list[float]:
        """Runs the cluster and returns the times at which pictures were there."""
        self.cluster.clock.run()
        return [at_s for at_s, _ in self.got]


def test_a_new_picture_takes_its_preparation_and_its_run() -> None:
    """A picture that nobody has is prepared in 0.1 s and encoded in 0.4 s, without waiting."""
    pulls = Pulls()
    pulls.pull(1.0, "a")
    assert pulls.times() == [1.5]
    assert pulls.got[0][1] == {"encoder": pytest.approx(0), "preprocessor": 0}


def test_a_decoder_keeps_what_it_got() -> None:
    """The second request for a picture finds it in the decoder at once, although the encoder keeps nothing."""
    pulls = Pulls(with_encoders(cache_patches=0))
    pulls.pull(0.0, "a")
    pulls.pull(3.0, "a")
    assert pulls.times() == [0.5, 3.0]
    assert pulls.cluster.pictures.num_made == 1


def test_requests_of_one_decoder_share_a_call() -> None:
    """Two requests for a new picture at the same decoder get it at the same time, from one call."""
    pulls = Pulls()
    pulls.pull(0.0, "a")
    pulls.pull(0.2, "a")
    assert pulls.times() == [0.5, 0.5]
    assert pulls.cluster.pictures.num_made == 1


def test_decoders_share_a_run() -> None:
    """Two decoders that ask for a new picture at once get it from one run, and a third one later from the cache."""
    pulls = Pulls(encoder=3, decoder=3)
    for decoder, at_s in ((0, 0.0), (1, 0.2), (2, 4.0)):
        pulls.pull(at_s, "a", decoder)
    assert pulls.times() == [0.5, 0.5, 4.0]
    assert pulls.cluster.pictures.num_made == 1
    assert all(one.num_ongoing == 0 for one in pulls.cluster.encoders.running.values())


def test_a_stand_in_sends_calls_to_the_encoder_that_makes_the_picture() -> None:
    """While the home of a picture makes it and has no room, a second decoder asks the other encoder. The picture is
    still made once, and nobody's call stays open."""
    pulls = Pulls(with_encoders(max_ongoing_requests=1), encoder=2, decoder=2)
    pulls.pull(0.0, "a")
    pulls.pull(0.2, "a", 1)
    assert pulls.times() == [0.5, 0.5]
    assert pulls.cluster.pictures.num_made == 1
    assert {one.num_ongoing for one in pulls.cluster.encoders.running.values()} == {0}


def test_a_stand_in_borrows_what_the_home_keeps() -> None:
    """While the home of a picture has no room, the other encoder gives the home's embedding and keeps a copy."""
    pulls = Pulls(with_encoders(max_ongoing_requests=1), encoder=2, decoder=3)
    names = list(pulls.cluster.encoders.running)
    same_home = next(name for name in map(str, range(99)) if home(name, names) == home("a", names))
    pulls.pull(0.0, "a")
    pulls.pull(1.0, same_home)
    pulls.pull(1.1, "a", 1)
    assert pulls.times() == [0.5, 1.1, 1.5]
    assert pulls.cluster.pictures.num_made == 2
    assert all("a" in one.held for one in pulls.cluster.encoders.running.values())


def test_pictures_wait_where_their_pool_is_short() -> None:
    """Of two new pictures the second waits 0.1 s for the preprocessor and then 0.3 s for the tower."""
    pulls = Pulls()
    pulls.pull(0.0, "a")
    pulls.pull(0.0, "b")
    assert pulls.times() == [pytest.approx(0.5, abs=0.002), pytest.approx(0.9, abs=0.002)]
    waits_s = pulls.got[1][1]
    assert waits_s["preprocessor"] == pytest.approx(0.1)
    assert waits_s["encoder"] == pytest.approx(0.3, abs=0.002)


def test_several_encoders_work_at_the_same_time() -> None:
    """Twelve pictures take less than half as long with four encoders as with one."""
    ends_s = []
    for num_encoders in (1, 4):
        pulls = Pulls(encoder=num_encoders)
        for number in range(12):
            pulls.pull(0.0, f"picture {number}")
        ends_s.append(max(pulls.times()))
    assert ends_s[1] < ends_s[0] / 2


def test_a_colocated_decoder_only_has_pictures_prepared() -> None:
    """Without encoders a picture is there after its preparation, and the decoder itself must encode it."""
    colocated = ROUND.model_copy(update={"decoder": ROUND.decoder.model_copy(update={"tower_patch_s": 0.001})})
    pulls = Pulls(colocated, encoder=0)
    pulls.pull(0.0, "a")
    assert pulls.times() == [0.1]
    assert pulls.cluster.pictures.num_made == 0
