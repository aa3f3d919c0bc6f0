"""A prompt as routing reads it, and which decoder it goes to."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from cluster.checkpoint import ProcessorSettings
from cluster.errors import InvalidPicture
from cluster.messages import Call, picture_part
from cluster.preprocess import smart_resize
from cluster.routing.conversations import (
    AWAY_SHARE,
    MAX_AWAY_TOKENS,
    RUNNING_TOKENS,
    Conversation,
    ConversationRoutes,
    read_conversation,
)
from cluster.routing.pictures import rendezvous
from tests.helpers.decoders import share_at_their_prefix
from tests.unit.cluster.routing.test_pictures import names

SETTINGS = ProcessorSettings()
PERIOD_S = 1.0
IDLE = {"waiting": 0, "running": 0, "queued_tokens": 0, "kv_use": 0.0}


def chat(*turns: str | list[object], **fields: object) -> Conversation:
    """Returns a conversation in which user and model take turns."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return read_conversation(
        Call("chat", "", {"messages": messages, **fields}, dict.fromkeys("abcdef", 448 * 448)), SETTINGS
    )


def test_the_next_turn_begins_with_all_links_of_the_last() -> None:
    """The chain of a conversation is a prefix of its next turn's chain. Conversations that differ at the start share
    no link."""
    turn, later = chat("How do you do?"), chat("How do you do?", "Well.", "Glad to hear it.")
    other = chat("How do you do!", "Well.", "Glad to hear it.")
    assert later.links[: len(turn.links)] == turn.links
    assert not {link.name for link in other.links} & {link.name for link in later.links}
    assert not {link.name for link in chat("How do you do?", tools=[{}]).links} & {link.name for link in turn.links}


def test_questions_about_one_picture_share_it() -> None:
    """Two conversations that begin with the same picture share its links, and differ from the first different word
    on."""
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
        {"messages": [{"content": [{"type": "prism_picture"}, {"type": "prism_picture", "digest": [{}]}]}]},
        {"prompt": "\ud800"},
    ],
)
def test_whatever_the_body_holds_makes_a_chain(body: dict[str, object]) -> None:
    """A body that vLLM will refuse gets a chain like any other."""
    assert read_conversation(Call("chat", "", body), SETTINGS).num_tokens >= 0


def test_a_long_text_is_counted_whole_and_read_in_part() -> None:
    """A text of two megabytes is counted with all its tokens, but makes only a bounded number of links."""
    conversation = chat("x" * 2**21)
    assert conversation.num_tokens == pytest.approx(2**19, rel=0.01)
    assert len(conversation.links) < 256


@pytest.mark.parametrize("seed", range(200))
def test_patches_are_estimated_from_pixels(seed: int) -> None:
    """The estimated number of patches is within a fifth of the processor's, except for the most elongated pictures."""
    draw = random.Random(seed)
    width, height = (int(60 * 2 ** draw.uniform(0, 7)) for _ in range(2))
    try:
        new_height, new_width = smart_resize(height, width, SETTINGS)
    except InvalidPicture:
        return
    if min(new_height, new_width) >= 3 * 28:
        assert SETTINGS.num_patches(width * height) == pytest.approx(new_height * new_width // 14**2, rel=0.2)


def test_conversations_spread_over_an_idle_pool_and_stay() -> None:
    """On an idle pool, conversations that begin alike are spread over the replicas, and later turns go to the same
    replica, also through a Router that has not seen the conversation."""
    routes, pool = ConversationRoutes(PERIOD_S), names(2)
    where: dict[int, str] = {}
    system = "You are helpful. "
    turns = {number: [system + f"{number} " + "word " * 200] for number in range(60)}
    for number, said in turns.items():
        where[number] = routes.rank(chat(*said), pool, 0)[0]
        routes.sent(str(number), chat(*said), where[number], 0)
        routes.ended(str(number))
    assert min(Counter(where.values()).values()) > 15
    for number, said in turns.items():
        for knows in (routes, ConversationRoutes(PERIOD_S)):
            assert knows.rank(chat(*said, "Yes.", "Go on."), pool, 1)[0] == where[number]


@pytest.mark.parametrize("seed", range(50))
def test_the_cheapest_is_what_a_search_finds(seed: int) -> None:
    """Over random pools, the first replica is the one that a plain search finds cheapest: the uncached prompt plus
    the work before it over the free KV cache, and a surcharge where the conversation does not belong."""
    draw, routes, pool = random.Random(seed), ConversationRoutes(PERIOD_S), names(4)
    work, kv_use = dict[str, float](), dict[str, float]()
    texts = [f"{letter} " * draw.choice([30, 300, 900]) for letter in "abcdef"]
    for name in pool:
        running, queued_tokens = draw.randrange(6), draw.randrange(3000)
        stats = {
            "waiting": draw.randrange(3),
            "running": running,
            "queued_tokens": queued_tokens,
            "kv_use": draw.random(),
        }
        work[name], kv_use[name] = queued_tokens + RUNNING_TOKENS * (stats["waiting"] + running), stats["kv_use"]
        routes.report(name, stats, 0)
    sent: dict[str, list[list[str]]] = {name: [] for name in pool}

    def prefill(said: list[str], name: str) -> float:
        """Computes the tokens to prefill by comparing a conversation with every earlier one of the replica, link by
        link."""
        asked, cached = chat(*said), 0
        for old in sent[name]:
            alike = [link for link, other in zip(asked.links, chat(*old).links, strict=False) if link == other]
            cached = max(cached, sum(link.num_tokens for link in alike))
        return asked.num_tokens - (cached if cached >= asked.num_tokens / 2 else 0)

    for call in range(30):
        said = draw.sample(texts, draw.randint(1, 3))
        if call % 2:
            said = [*draw.choice([old for olds in sent.values() for old in olds])[:4], "And?"]
        start = chat(said[0]).links[-1]
        is_shared = any(old[0] == said[0] for olds in sent.values() for old in olds)
        places = pool if is_shared else [name for name in pool if any(start in chat(*old).links for old in sent[name])]
        places = places or rendezvous(start.name.hex(), pool)[:1]
        costs = {
            name: prefill(said, name)
            + work[name] / max(1 - kv_use[name], 0.05)
            + (0 if name in places else min(AWAY_SHARE * chat(*said).num_tokens, MAX_AWAY_TOKENS))
            for name in pool
        }
        [first, *_] = routes.rank(chat(*said), pool, 0)
        assert costs[first] == pytest.approx(min(costs.values()))
        work[first] += RUNNING_TOKENS + prefill(said, first)
        routes.sent(str(call), chat(*said), first, 0)
        sent[first].append(said)


@pytest.mark.parametrize(("num_routers", "num_decoders"), [(1, 2), (2, 2), (4, 4), (2, 8)])
def test_later_turns_find_their_prefix_through_any_router(num_routers: int, num_decoders: int) -> None:
    """In a simulated pool at 40 % load, nine of ten later turns go to a decoder that has the turn before, whichever
    Router takes them."""
    routers = [ConversationRoutes(PERIOD_S) for _ in range(num_routers)]
    assert share_at_their_prefix(routers, names(num_decoders), load=0.4, seed=0) >= 0.9


@pytest.mark.parametrize("num", [2, 4])
def test_a_hot_prefix_does_not_swamp_one_replica(num: int) -> None:
    """Long calls that all have the same first turn of 4,000 tokens are spread evenly over the replicas."""
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
    """A prompt counts as work of its replica for two report periods. By then the engine's own report includes it."""
    routes, pool = ConversationRoutes(PERIOD_S), names(2)
    routes.sent("1", chat("word " * 4_000), pool[0], 0)
    short = chat("Hello")
    assert routes.cost(short, pool[0], 0.5) - routes.cost(short, pool[1], 0.5) > 4_000
    assert routes.cost(short, pool[0], 2.5) - routes.cost(short, pool[1], 2.5) == RUNNING_TOKENS


def test_a_decoder_that_others_keep_busy_is_avoided_though_it_has_the_prefix() -> None:
    """A replica whose engine reports much work is avoided although it has the prefix cached. It is chosen again once
    its engine is idle."""
    routes, pool = ConversationRoutes(PERIOD_S), names(2)
    said = ["word " * 1_000]
    routes.sent("1", chat(*said), pool[1], 0)
    routes.ended("1")
    later = chat(*said, "Yes.", "And?")
    assert routes.rank(later, pool, 1)[0] == pool[1]
    routes.report(pool[1], {"waiting": 4, "running": 8, "queued_tokens": 9_000, "kv_use": 0.5}, 5)
    assert routes.rank(later, pool, 5)[0] == pool[0]
    routes.report(pool[1], IDLE, 6)
    assert routes.rank(later, pool, 6)[0] == pool[1]


def test_a_picture_that_was_there_is_worth_its_transfer() -> None:
    """Among equal decoders, a call goes to one that has had its pictures' embeddings, whatever text stands before
    them."""
    routes, pool = ConversationRoutes(PERIOD_S), names(2)
    routes.sent("1", chat([picture_part("a")]), pool[1], 0)
    routes.sent("2", chat([picture_part("b")]), pool[0], 0)
    routes.ended("1")
    routes.ended("2")
    assert routes.rank(chat(["Look: ", picture_part("a")]), pool, 5)[0] == pool[1]
    assert routes.rank(chat(["Look: ", picture_part("b")]), pool, 5)[0] == pool[0]


def test_no_link_is_shared_between_salts() -> None:
    """Conversations with different ``cache_salt`` values share no link. A null salt equals none."""
    salted = [chat("b", cache_salt="a"), chat("b", cache_salt="None"), chat("b")]
    links = [{link.name for link in each.links} for each in salted]
    assert not any(one & other for one, other in itertools.combinations(links, 2))
    assert chat("b", cache_salt=None) == chat("b")
