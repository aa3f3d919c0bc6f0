"""Calls that are refused before the engine sees them. ``tests/serve`` runs calls on a real engine."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.decode.answer import generate
from cluster.errors import ContinuationNotExact
from cluster.messages import Call, Replay


class NoEngine:
    """An engine that must not be asked."""

    def __getattr__(self, name: str) -> object:
        raise LookupError(name)


async def begun(body: dict[str, Any], num_chars: int) -> None:
    """Begins a continuation behind so many characters of an event."""
    engine: Any = NoEngine()
    call = Call("completions", "one", {"stream": True, **body}, {}, Replay(1, 2, num_chars, b""))

    async def pull(_: str) -> Any:
        raise LookupError

    await anext(generate(engine, call, {}, pull))


@pytest.mark.parametrize("asked", [{"logprobs": 0}, {"logprobs": True}, {"top_logprobs": 2}, {"prompt_logprobs": 1}])
async def test_a_part_of_an_event_with_logprobs_does_not_go_on(asked: dict[str, Any]) -> None:
    """Repeated log-probabilities are stand-ins, so the rest of a cut event would not fit its beginning."""
    with pytest.raises(ContinuationNotExact, match="log-probabilities"):
        await begun(asked, 9)
    with pytest.raises(LookupError):
        await begun(asked, 0)


async def test_a_part_of_an_event_without_logprobs_goes_on() -> None:
    """A body that does not ask for log-probabilities reaches the engine."""
    with pytest.raises(LookupError):
        await begun({"logprobs": False, "top_logprobs": None}, 9)
