"""The simulated decoder, with steps computed by hand."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cluster.scaling.simulation.engine import DecoderReplica, EngineSequence
from cluster.scaling.simulation.events import EventClock
from cluster.scaling.simulation.prompts import PromptMaker
from cluster.scaling.simulation.speeds import DecoderSpeeds
from tests.helpers.simulated import PATCHES, ROUND, TOKENS, arrival

if TYPE_CHECKING:
    from collections.abc import Collection

    from cluster.scaling.schedules.schedule import Arrival

SPEEDS = DecoderSpeeds(prefill_tokens_per_s=1000, step_s=0.02, sequence_s=0.01, step_tokens=500, kv_tokens=2000)


class Run:
    """A decoder that gets requests, and the times of their starts, first tokens and ends."""

    def __init__(self, speeds: DecoderSpeeds = SPEEDS) -> None:
        self.clock = EventClock()
        self.decoder = DecoderReplica("one", self.clock, speeds, 1.25)
        self.prompts = PromptMaker(ROUND.processor)
        self.waits_s: list[float] = []
        self.firsts_s: list[float] = []
        self.ends_s: list[float] = []
        self.num_new: list[int] = []

    def send(self, request: Arrival, to_encode: Collection[str] = ()) -> None:
        """Adds a request at the time of its arrival."""

        def note(times_s: list[float]) -> None:
            times_s.append(round(self.clock.now_s, 9))

        sequence = EngineSequence(
            self.prompts.prompt(request),
            request.output_tokens,
            self.waits_s.append,
            lambda: note(self.firsts_s),
            lambda: note(self.ends_s),
        )

        def add() -> None:
            self.decoder.add(sequence, to_encode)
            self.num_new.append(sequence.num_new_tokens)

        self.clock.at(request.at_s, add)


def test_one_request_takes_its_prefill_and_one_step_per_token() -> None:
    """100 tokens of prompt and 3 of answer take a step of 120 ms, and two steps of 30 ms."""
    run = Run()
    run.send(arrival(0.0, output_tokens=3))
    run.clock.run()
    assert (run.firsts_s, run.ends_s) == ([0.12], [0.18])
    assert run.decoder.done == 100
    assert run.decoder.busy_s == pytest.approx(0.12)


def test_a_long_prompt_takes_several_steps() -> None:
    """A prompt of 1,200 tokens takes three steps, because a step computes 500 tokens at most."""
    run = Run()
    run.send(arrival(0.0, text_tokens=1200))
    run.clock.run()
    assert run.firsts_s == run.ends_s == [1.26]


def test_work_is_counted_as_by_a_real_engine() -> None:
    """A prompt waits until its first token is there, and is done then. Steps with prompt tokens are busy in full:
    120 ms for the first prompt, and 1,260 ms for the second one, whose three steps begin at 5 s."""
    run = Run()
    run.send(arrival(0.0, output_tokens=3))
    run.send(arrival(5.0, text_tokens=1200))
    run.clock.run(until_s=6.0)
    assert (run.decoder.waiting, run.decoder.stats()["queued_tokens"], run.decoder.done) == (1200, 1200, 100)
    run.clock.run()
    assert (run.decoder.waiting, run.decoder.done) == (0, 1300)
    assert run.decoder.busy_s == pytest.approx(0.12 + 1.26)


def test_a_prompt_that_arrives_between_two_steps_starts_with_the_next_one() -> None:
    """Steps of 30 ms run from 0.12 s. A prompt at 0.16 s starts at 0.18 s, and its step also gives the first answer a
    token: 0.18 + 0.1 + 0.02 + 0.01 = 0.31 s."""
    run = Run()
    run.send(arrival(0.0, output_tokens=10))
    run.send(arrival(0.16, output_tokens=1))
    run.clock.run()
    assert run.firsts_s == [0.12, 0.31]
    assert run.waits_s == [0.0, pytest.approx(0.02)]
    assert run.ends_s == [0.31, 0.49]  # 9 steps after the first token: 2 before, 1 with the prompt, 6 after


def test_answers_that_run_at_the_same_time_slow_each_other_down() -> None:
    """Two answers that decode at the same time take steps of 40 ms and not of 30 ms."""
    run = Run()
    for _ in range(2):
        run.send(arrival(0.0, text_tokens=50, output_tokens=5))
    run.clock.run()
    # The first prompt starts alone, because the second one arrives an event later.
    assert run.firsts_s == [0.07, pytest.approx(0.15)]
    assert run.ends_s == [pytest.approx(0.27), pytest.approx(0.30)]


def test_a_request_waits_until_the_kv_cache_has_room_for_all_of_it() -> None:
    """With room for 2,000 tokens, a second request of 1,100 tokens waits for the end of the first."""
    run = Run()
    for _ in range(2):
        run.send(arrival(0.0, text_tokens=1000, output_tokens=100))
    run.clock.run(until_s=1.1)
    assert run.decoder.kv_use == 0.55
    assert run.decoder.waiting == 1000
    run.clock.run()
    assert run.waits_s == [0.0, run.ends_s[0]]
    assert run.decoder.kv_use == 0


def test_no_more_sequences_run_than_are_allowed() -> None:
    """With ``max_num_seqs`` of 1 requests run one after the other."""
    run = Run(SPEEDS.model_copy(update={"max_num_seqs": 1}))
    for _ in range(3):
        run.send(arrival(0.0, output_tokens=2))
    run.clock.run()
    assert run.ends_s == [0.15, 0.30, 0.45]


def test_a_later_turn_computes_only_its_new_tokens() -> None:
    """A second turn finds the prompt and the answer of the first in the prefix cache and computes its own text."""
    run = Run()
    run.send(arrival(0.0, output_tokens=20, conversation="one"))
    run.send(arrival(5.0, text_tokens=40, conversation="one", turn=1))
    run.clock.run()
    assert run.num_new == [100, 40]


def test_a_full_prefix_cache_forgets_the_oldest_prompts() -> None:
    """With room for 2,000 tokens, two prompts of 1,000 push out a conversation that was there before."""
    run = Run()
    run.send(arrival(0.0, output_tokens=20, conversation="one"))
    for at_s in (5.0, 10.0):
        run.send(arrival(at_s, text_tokens=1000))
    run.send(arrival(15.0, text_tokens=40, conversation="one", turn=1))
    run.clock.run()
    assert run.num_new == [100, 1000, 1000, 160]


def test_an_engine_with_a_tower_spends_the_time_of_its_pictures_in_its_steps() -> None:
    """A picture that must be encoded makes the prefill longer by its patches. A picture that is kept costs nothing."""
    run = Run(SPEEDS.model_copy(update={"tower_patch_s": 0.001}))
    run.send(arrival(0.0, "new"), to_encode={"new"})
    run.send(arrival(5.0, "kept"))
    run.clock.run()
    prefill_s = 0.02 + (TOKENS + 100) / 1000
    assert run.firsts_s == [pytest.approx(prefill_s + PATCHES / 1000), pytest.approx(5 + prefill_s)]


def test_pictures_in_the_prefix_cache_are_not_encoded_again() -> None:
    """A colocated engine that is told to encode a picture of an earlier turn does not, since its prefix is cached."""
    run = Run(SPEEDS.model_copy(update={"tower_patch_s": 0.001}))
    run.send(arrival(0.0, "new", conversation="one"), to_encode={"new"})
    run.send(arrival(5.0, conversation="one", turn=1), to_encode={"new"})
    run.clock.run()
    assert run.firsts_s[1] == pytest.approx(5.12)


def test_every_request_ends_once_and_after_its_prefill() -> None:
    """Of 500 random requests each one has one start, one first token no earlier than its prefill, and one end."""
    run, draw = Run(SPEEDS.model_copy(update={"kv_tokens": 5000, "max_num_seqs": 8})), random.Random(3)
    arrivals = [
        arrival(draw.uniform(0, 200), text_tokens=draw.randint(1, 1500), output_tokens=draw.randint(1, 100))
        for _ in range(500)
    ]
    for one in arrivals:
        run.send(one)
    run.clock.run()
    assert len(run.waits_s) == len(run.firsts_s) == len(run.ends_s) == 500
    assert min(run.waits_s) >= 0
    assert run.decoder.done == run.decoder.offered == sum(one.text_tokens for one in arrivals)
    assert run.decoder.done / 1000 < run.decoder.busy_s < max(run.ends_s)
    assert run.decoder.stats() == {"queued_tokens": 0, "waiting": 0, "running": 0, "kv_use": 0}
