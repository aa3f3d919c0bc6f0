"""Whole prompts from the arrivals of a schedule."""

from __future__ import annotations

from cluster.scaling.simulation.prompts import PromptMaker
from tests.helpers.simulated import PATCHES, PIXELS, ROUND, TOKENS, arrival


def test_a_prompt_has_its_pictures_before_its_text() -> None:
    """A request with two pictures has three links, with the tokens of each, and its pictures have their sizes."""
    prompt = PromptMaker(ROUND.processor).prompt(arrival(0.0, "a", "b", text_tokens=30))
    links = prompt.conversation.links
    assert [(link.picture, link.num_tokens) for link in links] == [("a", TOKENS), ("b", TOKENS), (None, 30)]
    assert prompt.num_tokens == 230
    assert [(one.num_pixels, one.num_patches) for one in prompt.pictures] == [(PIXELS, PATCHES)] * 2


def test_a_later_turn_begins_with_all_earlier_ones() -> None:
    """The second turn of a conversation has the links of the first, the link of its answer, and its own."""
    maker = PromptMaker(ROUND.processor)
    first = maker.prompt(arrival(0.0, "a", output_tokens=50, conversation="one"))
    second = maker.prompt(arrival(9.0, "b", conversation="one", turn=1))
    assert second.conversation.links[:3] == (*first.conversation.links, first.answer)
    assert second.num_tokens == 200 + 50 + 200
    assert [one.digest for one in second.pictures] == ["a", "b"]
    assert second.conversation.start == first.conversation.start == first.conversation.links[-1].name


def test_texts_are_new_and_pictures_have_names() -> None:
    """Two requests share the link of their common first picture, and nothing else."""
    maker = PromptMaker(ROUND.processor)
    one, other = (maker.prompt(arrival(0.0, "a")) for _ in range(2))
    assert one.conversation.links[0] == other.conversation.links[0]
    assert one.conversation.links[1].name != other.conversation.links[1].name


def test_a_turn_without_earlier_turns_begins_a_conversation() -> None:
    """If a schedule begins with a later turn, its prompt is what the schedule says of it."""
    assert PromptMaker(ROUND.processor).prompt(arrival(0.0, conversation="one", turn=3)).num_tokens == 100
