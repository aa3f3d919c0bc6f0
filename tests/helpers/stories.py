"""Reads what a stream told its client, so that two streams can be compared although their events are cut differently.

An engine's outputs are joined in one event if the client's process is busy, and the answers to several prompts come in
any order. So two streams of one request differ in their bytes, also if nothing fails.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 0.02
"""Log-probabilities of a prefill and of single steps differ by rounding."""


class About(float):
    """A log-probability, which equals others that are near."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) <= TOLERANCE

    __hash__ = float.__hash__


@dataclass
class Told:
    """What a client was told about one answer."""

    text: str = ""
    tools: dict[int, list[Any]] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    tokens: list[Any] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)
    num_roles: int = 0


@dataclass
class Story:
    """A whole stream: its answers by their index, its names and time stamps, its usage, its errors, and its ends."""

    told: dict[int, Told] = field(default_factory=dict)
    names: set[Any] = field(default_factory=set)
    usage: Any = None
    errors: list[Any] = field(default_factory=list)
    num_ends: int = 0

    @property
    def is_whole(self) -> bool:
        """True if the stream has an end and no error."""
        return not self.errors and self.num_ends == 1 and all(len(told.ends) == 1 for told in self.told.values())


def story_of(text: str) -> Story:
    """Reads the SSE text of a stream of chats or completions."""
    story = Story()
    for event in text.split("\n\n"):
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            story.num_ends += 1
        elif data:
            _add(story, json.loads(data))
    return story


def _add(story: Story, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        story.errors.append(chunk["error"])
        return
    story.names.add((chunk["id"], chunk["created"], chunk["model"]))
    story.usage = chunk.get("usage") or story.usage
    for choice in chunk["choices"]:
        told, delta = story.told.setdefault(choice["index"], Told()), choice.get("delta", {})
        told.text += choice.get("text") or delta.get("content") or ""
        told.num_roles += "role" in delta
        told.token_ids += choice.get("token_ids") or []
        for call in delta.get("tool_calls") or ():
            tool = told.tools.setdefault(call["index"], [None, ""])
            tool[0] = call["function"].get("name") or tool[0]
            tool[1] += call["function"].get("arguments") or ""
        if logprobs := choice.get("logprobs"):
            told.tokens += _tokens(logprobs)
        if choice["finish_reason"] is not None:
            told.ends.append((choice["finish_reason"], choice.get("stop_reason")))


def _tokens(logprobs: dict[str, Any]) -> list[Any]:
    """Each token with its place in the text, and its log-probability."""
    if "content" in logprobs:
        return [(one["token"], About(one["logprob"])) for one in logprobs["content"]]
    numbers = [None if number is None else About(number) for number in logprobs["token_logprobs"]]
    return list(zip(logprobs["tokens"], logprobs["text_offset"], numbers, strict=True))
