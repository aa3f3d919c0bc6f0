"""Which encoder a picture goes to, against searches over all possibilities and a simulated pool."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from cluster.routing.pictures import PictureRoutes, PictureWork, rendezvous, within_bound

if TYPE_CHECKING:
    from collections.abc import Callable


def names(num: int) -> list[str]:
    """Returns the names of a given number of replicas."""
    return [f"replica-{number}" for number in range(num)]


@pytest.mark.parametrize("num", [2, 3, 5, 8])
def test_every_replica_is_home_to_its_share(num: int) -> None:
    """Of 10,000 keys each of n replicas is the home of 1/n, within four standard deviations."""
    homes = Counter(rendezvous(str(key), names(num))[0] for key in range(10_000))
    spread = (10_000 / num * (1 - 1 / num)) ** 0.5
    assert all(abs(homes[name] - 10_000 / num) < 4 * spread for name in names(num))


@pytest.mark.parametrize("num", [2, 3, 5, 8])
def test_a_new_replica_takes_its_share_and_moves_nothing_else(num: int) -> None:
    """A replica that joins n others becomes the home of about 1/(n+1) of the keys. All other keys keep their home,
    also when it leaves again."""
    keys = [str(key) for key in range(5_000)]
    before = {key: rendezvous(key, names(num))[0] for key in keys}
    after = {key: rendezvous(key, names(num + 1))[0] for key in keys}
    moved = [key for key in keys if before[key] != after[key]]
    assert {after[key] for key in moved} == {names(num + 1)[-1]}
    assert len(moved) / len(keys) == pytest.approx(1 / (num + 1), rel=0.15)


def test_who_stands_in_for_a_replica_is_spread_too() -> None:
    """When a replica leaves, its keys are spread evenly over all other replicas."""
    lost = [key for key in map(str, range(8_000)) if rendezvous(key, names(5))[0] == "replica-2"]
    rest = [name for name in names(5) if name != "replica-2"]
    heirs = Counter(rendezvous(key, rest)[0] for key in lost)
    assert all(heirs[name] / len(lost) == pytest.approx(1 / 4, abs=0.05) for name in rest)


@pytest.mark.parametrize("seed", range(50))
def test_the_bound_gives_what_a_search_gives(seed: int) -> None:
    """The ranking begins with the first replica in rendezvous order whose load is within the factor times the mean.
    All other replicas follow, once each."""
    draw = random.Random(seed)
    order = draw.sample(names(8), draw.randint(1, 8))
    work = {name: float(draw.choice([0, 0, 1, 5, 100, draw.randint(0, 1000)])) for name in order}
    factor = draw.choice([1.0, 1.25, 2.0])
    ranked = within_bound(order, work, factor)
    mean = sum(work.values()) / len(order)
    assert ranked[0] == next(name for name in order if work[name] <= factor * mean)
    assert sorted(ranked) == sorted(order)


def test_callers_of_one_picture_are_one_pictures_work() -> None:
    """A hundred calls for one new picture go to its home and count as one picture's work."""
    routes, pool = PictureRoutes(1.25), names(3)
    hot = PictureWork("hot", 1000)
    homes = set()
    for call in range(100):
        [first, *_] = routes.rank(hot, pool, 0)
        routes.sent(str(call), hot, first, 0)
        homes.add(first)
    assert homes == {rendezvous("hot", pool)[0]}
    assert sorted(place.work.total(0) for place in routes._states.values()) == [0, 0, 1000]


def test_a_busy_home_is_passed_over_and_the_picture_stays_where_it_went() -> None:
    """A new picture whose home is busy goes to the next replica in rendezvous order. Later calls for it go there
    too."""
    routes, pool = PictureRoutes(1.25), names(2)
    first, second = [PictureWork(key, 500) for key in map(str, range(100)) if rendezvous(key, pool)[0] == pool[0]][:2]
    routes.sent("1", first, routes.rank(first, pool, 0)[0], 0)
    assert routes.rank(second, pool, 0) == [pool[1], pool[0]]
    routes.sent("2", second, pool[1], 0)
    routes.ended("1")
    routes.ended("2")
    assert routes.rank(second, pool, 0)[0] == pool[1]
    assert routes.rank(first, pool, 0)[0] == pool[0]


def test_a_picture_leaves_a_replica_that_is_gone() -> None:
    """The picture of a dead replica goes to the next replica in rendezvous order, and the dead replica's calls no
    longer count."""
    routes, pool = PictureRoutes(1.25), names(3)
    picture = PictureWork("p", 10)
    line = routes.rank(picture, pool, 0)
    routes.sent("1", picture, line[0], 0)
    left = [name for name in pool if name != line[0]]
    routes.retain(left)
    routes.ended("1")
    assert routes.rank(picture, left, 0) == line[1:]


def test_a_picture_too_many_is_forgotten_as_the_encoder_forgets_it() -> None:
    """When a replica has received more patches than its cache holds, its oldest picture counts as new again."""
    routes, pool = PictureRoutes(1.25), names(2)
    for name in pool:
        routes.describe(name, max_held=250)
    away = rendezvous("0", pool)[1]
    for call, digest in enumerate(["0", "x", "y"]):
        routes.sent(str(call), PictureWork(digest, 100), away, 0)
        routes.ended(str(call))
    assert routes.rank(PictureWork("0", 100), pool, 0)[0] != away
    assert routes.rank(PictureWork("y", 100), pool, 0)[0] == away


@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize("reuse", [0.0, 0.5, 0.8])
def test_no_worse_than_chance_and_no_picture_twice(num: int, reuse: float) -> None:
    """In a simulated pool each picture is encoded once, and pictures wait no longer than with random routing."""
    routes = PictureRoutes(1.25)
    routed = simulate(num, reuse, routes, lambda picture, now_s: routes.rank(picture, names(num), now_s)[0])
    draw = random.Random(1)
    chance = simulate(num, reuse, PictureRoutes(1.25), lambda *_: draw.choice(names(num)))
    assert routed.num_encoded == routed.num_distinct
    assert routed.mean_wait_s <= chance.mean_wait_s


class Outcome:
    """The result of a simulated run."""

    def __init__(self) -> None:
        self.num_encoded = 0
        self.num_distinct = 0
        self.mean_wait_s = 0.0


def simulate(num: int, reuse: float, routes: PictureRoutes, choose: Callable[[PictureWork, float], str]) -> Outcome:
    """Simulates pictures of many sizes that arrive at 70 % of what the pool can encode. Each replica encodes one
    picture at a time, in order of arrival."""
    draw, outcome = random.Random(0), Outcome()
    now_s, waits = 0.0, list[float]()
    ending = list[tuple[float, str]]()
    free_at_s, done_at_s = dict.fromkeys(names(num), 0.0), dict[tuple[str, str], float]()
    seen: list[PictureWork] = []
    for call in range(3_000):
        now_s += draw.expovariate(0.7 * num / (1 - reuse))
        for item in [item for item in ending if item[0] <= now_s]:
            ending.remove(item)
            routes.ended(item[1])
        if seen and draw.random() < reuse:
            picture = draw.choice(seen[-50:])
        else:
            picture = PictureWork(str(len(seen)), draw.choice([50, 50, 50, 250]))
            seen.append(picture)
        name = choose(picture, now_s)
        routes.sent(str(call), picture, name, now_s)
        if (name, picture.digest) not in done_at_s:
            free_at_s[name] = max(free_at_s[name], now_s) + picture.num_patches / 100
            done_at_s[name, picture.digest] = free_at_s[name]
            outcome.num_encoded += 1
        end_s = max(done_at_s[name, picture.digest], now_s)
        waits.append(end_s - now_s)
        ending.append((end_s, str(call)))
    outcome.num_distinct, outcome.mean_wait_s = len(seen), sum(waits) / len(waits)
    return outcome


def test_a_replica_that_was_only_tried_holds_nothing() -> None:
    """If a call is refused by one replica and accepted by another, only the second one has its work and its picture."""
    routes, picture = PictureRoutes(load_factor=1.25), PictureWork("a", 100)
    routes.sent("1", picture, "tried", 0, is_sure=False)
    routes.sent("1", picture, "taken", 0)
    routes.ended("1")
    for number in range(20):
        assert routes.rank(PictureWork("a", 100), [f"other {number}", "tried", "taken"], 0)[0] == "taken"
