"""Schedules from distributions: shape, mix, sizes and conversations."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest

from cluster.scaling.schedules.synthetic import KINDS, MAX_TURNS, TURN_GAP_S, Shape, Sizes, SyntheticLoad, synthetic

if TYPE_CHECKING:
    from cluster.scaling.schedules.schedule import Arrival

SEED = 3


def made(load: SyntheticLoad) -> list[Arrival]:
    """Returns the arrivals of a load."""
    return list(synthetic(load, SEED)[1])


def test_a_seed_gives_the_same_schedule() -> None:
    """The same load and seed give the same schedule, and another seed gives another one."""
    load = SyntheticLoad(60, 5)
    one, again, other = (list(synthetic(load, seed)[1]) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("shape", "shares"),
    [
        ("steady", [0.2] * 5),
        ("ramp", [0.104, 0.152, 0.2, 0.248, 0.296]),
        ("step", [0.08, 0.08, 0.2, 0.32, 0.32]),
        ("spike", [0.125, 0.125, 0.5, 0.125, 0.125]),
    ],
)
def test_each_shape_has_its_load_over_time(shape: Shape, shares: list[float]) -> None:
    """The share of the arrivals in each fifth of the time is that of the shape, with a peak of four times the rate."""
    rate_per_s = 40 if shape != "ramp" else 28
    peak_per_s = 160 if shape != "ramp" else 108
    load = SyntheticLoad(100, rate_per_s, peak_per_s, shape, weights={"text": 1})
    arrivals = made(load)
    fifths = Counter(min(4, int(arrival.at_s / 20)) for arrival in arrivals)
    for fifth, share in enumerate(shares):
        assert fifths[fifth] / len(arrivals) == pytest.approx(share, abs=0.02)


def test_the_mix_is_as_asked() -> None:
    """Kinds come in proportion to their weights, and a kind without weight never comes."""
    arrivals = made(SyntheticLoad(500, 20, weights={"text": 3, "picture": 1, "pages": 0}))
    shares = Counter(arrival.client for arrival in arrivals)
    assert shares["text"] / len(arrivals) == pytest.approx(0.75, abs=0.03)
    assert shares.keys() == {"text", "picture"}


def test_each_kind_asks_what_its_name_says() -> None:
    """Texts have no picture, single pictures have one, and several and pages have their numbers; page sizes are A4."""
    by_kind = defaultdict(list)
    for arrival in made(SyntheticLoad(600, 20)):
        by_kind[arrival.client].append(arrival)
    assert by_kind.keys() == set(KINDS)
    counts = {kind: {len(arrival.pictures) for arrival in some} for kind, some in by_kind.items()}
    assert counts == {
        "text": {0},
        "picture": {1},
        "pictures": {2, 3, 4, 5, 6},
        "pages": {1, 2, 3, 4},
        "reuse": {1},
        "turns": {0, 1},
    }
    assert {(page.width, page.height) for arrival in by_kind["pages"] for page in arrival.pictures} == {(1240, 1754)}
    names = Counter(picture.name for kind, some in by_kind.items() for one in some for picture in one.pictures)
    assert {name for name, count in names.items() if count > 1} <= {f"shared {number}" for number in range(32)}
    assert names["shared 0"] > 4 * names["shared 20"]


def test_sizes_have_the_median_that_was_asked_for() -> None:
    """Texts, answers and pictures have the medians of the load, and no side is longer than allowed."""
    sizes = Sizes(text_tokens=50, output_tokens=20, megapixels=0.1, max_side=900)
    arrivals = made(SyntheticLoad(600, 10, weights={"picture": 1, "pages": 0.2}, sizes=sizes))
    assert statistics.median(one.text_tokens for one in arrivals) == pytest.approx(50, rel=0.1)
    assert statistics.median(one.output_tokens for one in arrivals) == pytest.approx(20, rel=0.1)
    pictures = [picture for one in arrivals if one.client == "picture" for picture in one.pictures]
    assert statistics.median(one.width * one.height for one in pictures) == pytest.approx(100_000, rel=0.1)
    assert max(max(one.width, one.height) for arrival in arrivals for one in arrival.pictures) == 900


def test_conversations_go_on_in_order() -> None:
    """The turns of a conversation come one after the other, far enough apart, and only the first has a picture."""
    conversations = defaultdict(list)
    for arrival in made(SyntheticLoad(600, 2, weights={"turns": 1})):
        conversations[arrival.conversation].append(arrival)
    longest = max(conversations.values(), key=len)
    assert len(longest) == MAX_TURNS
    for turns in conversations.values():
        assert [arrival.turn for arrival in turns] == list(range(len(turns)))
        assert [len(arrival.pictures) for arrival in turns] == [1] + [0] * (len(turns) - 1)
        times_s = [arrival.at_s for arrival in turns]
        assert all(after - before >= TURN_GAP_S for before, after in itertools.pairwise(times_s))
