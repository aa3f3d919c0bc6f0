"""Where calls go, against searches over all possibilities and simulated pools."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict

import pytest

from cluster.config import ProcessorSettings
from cluster.conversation import Conversation, read_conversation
from cluster.errors import InvalidPicture
from cluster.messages import Call, picture_part
from cluster.preprocess import smart_resize
from cluster.route import (
    RUNNING_TOKENS,
    ConversationRoutes,
    Held,
    PictureRoutes,
    PictureWork,
    Piece,
    Work,
    rendezvous,
    within_bound,
)

SETTINGS = ProcessorSettings()
PERIOD_S = 1.0
IDLE = {"waiting": 0, "running": 0, "queued_tokens": 0, "kv_use": 0.0}


def names(num: int) -> list[str]:
    """So many replicas."""
    return [f"replica-{number}" for number in range(num)]


def chat(*turns: str | list[object], **fields: object) -> Conversation:
    """A conversation whose turns are the user's and the model's by turns."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return read_conversation(Call("chat", "", {"messages": messages, **fields}, dict.fromkeys("abcdef", 448 * 448)), SETTINGS)


# Rendezvous hashing and its bound


@pytest.mark.parametrize("num", [2, 3, 5, 8])
def test_every_replica_is_home_to_its_share(num: int) -> None:
    """Of 10,000 keys each replica is home to 1/n, within four standard deviations."""
    homes = Counter(rendezvous(str(key), names(num))[0] for key in range(10_000))
    spread = (10_000 / num * (1 - 1 / num)) ** 0.5
    assert all(abs(homes[name] - 10_000 / num) < 4 * spread for name in names(num))


@pytest.mark.parametrize("num", [2, 3, 5, 8])
def test_a_new_replica_takes_its_share_and_moves_nothing_else(num: int) -> None:
    """One replica more takes about 1/(n+1) of the keys, and all others keep their home; the same backwards for one less."""
    keys = [str(key) for key in range(5_000)]
    before = {key: rendezvous(key, names(num))[0] for key in keys}
    after = {key: rendezvous(key, names(num + 1))[0] for key in keys}
    moved = [key for key in keys if before[key] != after[key]]
    assert {after[key] for key in moved} == {names(num + 1)[-1]}
    assert len(moved) / len(keys) == pytest.approx(1 / (num + 1), rel=0.15)


def test_who_stands_in_for_a_replica_is_spread_too() -> None:
    """The keys of one replica go to all the others in like shares when it is gone."""
    lost = [key for key in map(str, range(8_000)) if rendezvous(key, names(5))[0] == "replica-2"]
    rest = [name for name in names(5) if name != "replica-2"]
    heirs = Counter(rendezvous(key, rest)[0] for key in lost)
    assert all(heirs[name] / len(lost) == pytest.approx(1 / 4, abs=0.05) for name in rest)


@pytest.mark.parametrize("seed", range(50))
def test_the_bound_gives_what_a_search_gives(seed: int) -> None:
    """The first is the first in line with no more than the factor times the mean; the others follow, all of them, each once."""
    draw = random.Random(seed)
    order = draw.sample(names(8), draw.randint(1, 8))
    work = {name: float(draw.choice([0, 0, 1, 5, 100, draw.randint(0, 1000)])) for name in order}
    factor = draw.choice([1.0, 1.25, 2.0])
    ranked = within_bound(order, work, factor)
    mean = sum(work.values()) / len(order)
    assert ranked[0] == next(name for name in order if work[name] <= factor * mean)
    assert sorted(ranked) == sorted(order)


# What is held, and what there is to do


def test_what_is_held_is_what_a_cache_of_that_size_holds() -> None:
    """Over random uses exactly the names are held that a plain list of uses, cut to the capacity, holds."""
    draw, oracle = random.Random(0), OrderedDict[int, int]()
    held = Held()
    held.capacity = 500
    sizes = [draw.choice([20, 50, 100, 600]) for _ in range(40)]
    for _ in range(3_000):
        name = min(draw.randrange(40), draw.randrange(40))
        held.use(name, sizes[name])
        oracle[name] = sizes[name]
        oracle.move_to_end(name)
        while sum(oracle.values()) > 500:
            oracle.popitem(last=False)
        assert held.weight == sum(oracle.values())
        assert [name in held for name in range(40)] == [name in oracle for name in range(40)]


@pytest.mark.parametrize("seed", range(20))
def test_of_ones_own_calls_none_is_lost_or_counted_twice(seed: int) -> None:
    """With nobody else in the pool the work is what a plain list of calls says, however late reports are."""
    draw, work = random.Random(seed), Work()
    running: list[tuple[str, int]] = []
    totals = [0.0]
    weights = {name: draw.randint(1, 100) for name in "abcdefgh"}
    for step in range(500):
        if running and draw.random() < 0.5:
            name, _ = running.pop(draw.randrange(len(running)))
            work.end(name)
        else:
            name = draw.choice("abcdefgh")
            running.append((name, weights[name]))
            work.begin(name, Piece(weights[name], weights[name]), step)
        totals.append(float(sum(dict(running).values())))
        if step % 10 == 9:
            work.report(draw.choice(totals[-10:]), step)
        assert work.total(step) == totals[-1]


def test_others_work_is_learnt_from_reports() -> None:
    """What a replica reports beyond one's own is others', until the next report."""
    work = Work()
    work.begin("mine", Piece(100, 100), 0)
    work.report(350, 1)
    assert work.total(1) == 350
    work.end("mine")
    assert work.total(1) == 250
    work.report(40, 2)
    assert work.total(2) == 0
    work.report(40, 3)
    assert work.total(3) == 40


# Encoders


def test_callers_of_one_picture_are_one_pictures_work() -> None:
    """A hundred calls for one new picture all go to its home, and weigh as much as one; the next picture weighs on its own."""
    routes, pool = PictureRoutes(1.25), names(3)
    hot = PictureWork("hot", 1000)
    homes = set()
    for call in range(100):
        [first, *_] = routes.rank(hot, pool, 0)
        routes.sent(str(call), hot, first, 0)
        homes.add(first)
    assert homes == {rendezvous("hot", pool)[0]}
    assert [place.work.total(0) for place in routes._places.values()].count(1000) == 1
    assert sum(place.work.total(0) for place in routes._places.values()) == 1000


def test_a_busy_home_is_passed_over_and_the_picture_stays_where_it_went() -> None:
    """A new picture whose home is busy goes to the next in line, and again there once its home is free."""
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
    """A picture held by a replica that died goes to the next in line, and calls that it took with it weigh no more."""
    routes, pool = PictureRoutes(1.25), names(3)
    picture = PictureWork("p", 10)
    line = routes.rank(picture, pool, 0)
    routes.sent("1", picture, line[0], 0)
    left = [name for name in pool if name != line[0]]
    routes.retain(left)
    routes.ended("1")
    assert routes.rank(picture, left, 0) == line[1:]


def test_a_picture_too_many_is_forgotten_as_the_encoder_forgets_it() -> None:
    """Once a replica has had more patches than it keeps, its oldest picture is new again."""
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
    """In a simulated pool pictures are encoded once each, and wait no longer than where each call goes anywhere by chance."""
    routes = PictureRoutes(1.25)
    routed = simulate(num, reuse, lambda picture, now_s: routes.rank(picture, names(num), now_s)[0], routes)
    draw = random.Random(1)
    chance = simulate(num, reuse, lambda *_: draw.choice(names(num)), None)
    assert routed.num_encoded == routed.num_distinct
    assert routed.mean_wait_s <= chance.mean_wait_s


class Outcome:
    """What became of a simulated run."""

    def __init__(self) -> None:
        self.num_encoded = 0
        self.num_distinct = 0
        self.mean_wait_s = 0.0


def simulate(num: int, reuse: float, choose, routes) -> Outcome:  # type: ignore[no-untyped-def]
    """Pictures of many sizes come at 70 % of what the pool can encode; each replica encodes one at a time, in order."""
    draw, outcome = random.Random(0), Outcome()
    now_s, waits, ending = 0.0, [], []
    free_at_s, done_at_s = dict.fromkeys(names(num), 0.0), {}
    seen: list[PictureWork] = []
    for call in range(3_000):
        now_s += draw.expovariate(0.7 * num / (1 - reuse))
        for item in [item for item in ending if item[0] <= now_s]:
            ending.remove(item)
            if routes:
                routes.ended(item[1])
        if seen and draw.random() < reuse:
            picture = draw.choice(seen[-50:])
        else:
            picture = PictureWork(str(len(seen)), draw.choice([50, 50, 50, 250]))
            seen.append(picture)
        name = choose(picture, now_s)
        if routes:
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


# Decoders


def test_the_next_turn_begins_with_all_links_of_the_last() -> None:
    """A conversation's chain begins the chain of its next turn; one that differs at the start has none in common."""
    turn, later = chat("How do you do?"), chat("How do you do?", "Well.", "Glad to hear it.")
    other = chat("How do you do!", "Well.", "Glad to hear it.")
    assert later.links[: len(turn.links)] == turn.links
    assert not {link.name for link in other.links} & {link.name for link in later.links}
    assert not {link.name for link in chat("How do you do?", tools=[{}]).links} & {link.name for link in turn.links}


def test_questions_about_one_picture_share_it() -> None:
    """Two questions after the same picture part after it; before it, they share the picture's tokens."""
    one, two = (chat([picture_part("a"), {"type": "text", "text": question}]) for question in ("What?", "Who?"))
    shared = [link for link, other in zip(one.links, two.links, strict=True) if link == other]
    assert sum(link.num_tokens for link in shared if link.picture) == 448 * 448 // 14**2 // 4


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": 3},
        {"messages": [3, {"role": None}]},
        {"prompt": [[1, 2]]},
        {"messages": [{"content": [None, "x", {"type": 3}]}]},
        {"prompt": "\ud800"},
    ],
)
def test_whatever_the_body_holds_makes_a_chain(body: dict[str, object]) -> None:
    """A body that vLLM will refuse is routed all the same."""
    assert read_conversation(Call("chat", "", body), SETTINGS).num_tokens >= 0


def test_a_long_text_is_counted_whole_and_read_in_part() -> None:
    """Two megabytes of text have all their tokens and a bounded number of links."""
    conversation = chat("x" * 2**21)
    assert conversation.num_tokens == pytest.approx(2**19, rel=0.01)
    assert len(conversation.links) < 256


def test_conversations_spread_over_an_idle_pool_and_stay() -> None:
    """On an idle pool conversations that begin alike go to the replicas by turns, and each goes on where it began."""
    routes, pool = ConversationRoutes(PERIOD_S), names(2)
    where: dict[int, str] = {}
    system = "You are helpful. "
    turns = {number: [system + f"{number} " + "word " * 200] for number in range(6)}
    for number, said in turns.items():
        where[number] = routes.rank(chat(*said), pool, 0)[0]
        routes.sent(str(number), chat(*said), where[number], 0)
        routes.ended(str(number))
    assert Counter(where.values()) == dict.fromkeys(pool, 3)
    for number, said in turns.items():
        assert routes.rank(chat(*said, "Yes.", "Go on."), pool, 1)[0] == where[number]


@pytest.mark.parametrize("seed", range(50))
def test_the_cheapest_is_what_a_search_finds(seed: int) -> None:
    """Over random pools the first is the one with the least of: prompt not cached, plus the work before it over the free KV."""
    draw, routes, pool = random.Random(seed), ConversationRoutes(PERIOD_S), names(4)
    texts = [f"{letter} " * draw.choice([30, 300, 900]) for letter in "abcdef"]
    for name in pool:
        routes.report(
            name,
            {
                "waiting": draw.randrange(3),
                "running": draw.randrange(6),
                "queued_tokens": draw.randrange(3000),
                "kv_use": draw.random(),
            },
            0,
        )
    sent: dict[str, list[list[str]]] = {name: [] for name in pool}
    weights = dict.fromkeys(pool, 0.0)
    stats = {name: (routes._place(name).work.total(0), routes._place(name).kv_use) for name in pool}

    def prefill(said: list[str], name: str) -> float:
        """By comparing with all that was sent there, link by link."""
        links = chat(*said).links
        cached = max(
            (
                sum(link.num_tokens for i, link in enumerate(links) if links[: i + 1] == chat(*old).links[: i + 1])
                for old in sent[name]
            ),
            default=0,
        )
        total = chat(*said).num_tokens
        return total - (cached if cached >= total / 2 else 0)

    for call in range(30):
        said = (
            draw.sample(texts, draw.randint(1, 3))
            if draw.random() < 0.5 or not any(sent.values())
            else [*draw.choice([old for olds in sent.values() for old in olds])[:4], "And?"]
        )
        costs = {name: prefill(said, name) + (stats[name][0] + weights[name]) / max(1 - stats[name][1], 0.05) for name in pool}
        [first, *_] = routes.rank(chat(*said), pool, 0)
        assert costs[first] == pytest.approx(min(costs.values()))
        weights[first] += RUNNING_TOKENS + prefill(said, first)
        routes.sent(str(call), chat(*said), first, 0)
        sent[first].append(said)


@pytest.mark.parametrize("num", [2, 4])
def test_a_hot_prefix_does_not_swamp_one_replica(num: int) -> None:
    """Calls that all begin with the same 4,000 tokens, and stay, end up shared out evenly among the replicas."""
    routes, pool = ConversationRoutes(PERIOD_S), names(num)
    prefix = "hot " * 4_000
    taken: Counter[str] = Counter()
    for call in range(64 * num):
        asked = chat(prefix, "Yes.", f"Question {call}?")
        now_s = call / 20
        [first, *_] = routes.rank(asked, pool, now_s)
        routes.sent(str(call), asked, first, now_s)
        taken[first] += 1
    assert max(taken.values()) - min(taken.values()) <= 4_000 / RUNNING_TOKENS + 1
    assert min(taken.values()) > 0


def test_a_prompt_waits_until_a_report_must_have_said_so() -> None:
    """A prompt just sent weighs on its replica; two periods later the engine's own report has taken its place."""
    routes, pool = ConversationRoutes(PERIOD_S), names(2)
    routes.sent("1", chat("word " * 4_000), pool[0], 0)
    short = chat("Hello")
    assert routes.cost(short, pool[0], 0.5) - routes.cost(short, pool[1], 0.5) > 4_000
    assert routes.cost(short, pool[0], 2.5) - routes.cost(short, pool[1], 2.5) == RUNNING_TOKENS


def test_a_decoder_that_others_keep_busy_is_avoided_though_it_has_the_prefix() -> None:
    """A cached prefix is weighed against what the engine reports; once the engine is idle it counts again."""
    routes, pool = ConversationRoutes(PERIOD_S), names(2)
    said = ["word " * 1_000]
    routes.sent("1", chat(*said), pool[1], 0)
    routes.ended("1")
    later = chat(*said, "Yes.", "And?")
    assert routes.rank(later, pool, 1)[0] == pool[1]
    routes.report(pool[1], {"waiting": 4, "running": 8, "queued_tokens": 6_000, "kv_use": 0.5}, 5)
    assert routes.rank(later, pool, 5)[0] == pool[0]
    routes.report(pool[1], IDLE, 6)
    assert routes.rank(later, pool, 6)[0] == pool[1]


def test_a_picture_that_was_there_is_worth_its_transfer() -> None:
    """Between decoders that are alike a call goes where its pictures' embeddings have been, whatever stands before them."""
    routes, pool = ConversationRoutes(PERIOD_S), names(2)
    routes.sent("1", chat([picture_part("a")]), pool[1], 0)
    routes.sent("2", chat([picture_part("b")]), pool[0], 0)
    routes.ended("1")
    routes.ended("2")
    assert routes.rank(chat(["Look: ", picture_part("a")]), pool, 5)[0] == pool[1]
    assert routes.rank(chat(["Look: ", picture_part("b")]), pool, 5)[0] == pool[0]


@pytest.mark.parametrize("seed", range(200))
def test_patches_are_estimated_from_pixels(seed: int) -> None:
    """The estimate is within a fifth of what the processor makes of a picture, for all but the most elongated."""
    draw = random.Random(seed)
    width, height = (int(60 * 2 ** draw.uniform(0, 7)) for _ in range(2))
    try:
        new_height, new_width = smart_resize(height, width, SETTINGS)
    except InvalidPicture:
        return
    if min(new_height, new_width) >= 3 * 28:
        assert SETTINGS.num_patches(width * height) == pytest.approx(new_height * new_width // 14**2, rel=0.2)
