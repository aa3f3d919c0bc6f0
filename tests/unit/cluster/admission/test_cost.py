"""The estimate of what a request costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cluster.admission.cost import UNKNOWN_ANSWER_TOKENS, RequestCost, cost_of

if TYPE_CHECKING:
    from cluster.messages import Endpoint


def cost(endpoint: Endpoint, **body: Any) -> RequestCost:
    """Returns the cost of a request with 400 bytes of text and 80 patches: 120 tokens of prompt."""
    return cost_of(endpoint, body, num_text_bytes=400, num_patches=80, max_tokens=1000)


@pytest.mark.parametrize(
    ("endpoint", "body", "num_sequences", "answer_tokens"),
    [
        ("chat", {"max_tokens": 50}, 1, 50),
        ("chat", {"max_tokens": 50, "max_completion_tokens": 60}, 1, 60),
        ("chat", {}, 1, UNKNOWN_ANSWER_TOKENS),
        ("chat", {"max_tokens": 10**9}, 1, 1000),
        ("chat", {"max_tokens": 10, "n": 4}, 4, 40),
        ("completions", {"prompt": "a"}, 1, 16),
        ("completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 5}, 4, 20),
        ("completions", {"prompt": [1, 2, 3], "max_tokens": 5}, 1, 5),
        ("completions", {"prompt": [[1], [2]], "max_tokens": 5}, 2, 10),
    ],
)
def test_text_pictures_and_answers_cost(
    endpoint: Endpoint, body: dict[str, Any], num_sequences: int, answer_tokens: int
) -> None:
    """Four bytes or four patches are a token of the prompt. A token of an answer costs two."""
    assert cost(endpoint, **body) == RequestCost(num_sequences, 80, 120 + 2 * answer_tokens)


@pytest.mark.parametrize("wrong", ["hot", -1, 0, True, None, 1.5, [], {}])
def test_wrong_values_count_as_missing(wrong: object) -> None:
    """vLLM will refuse such a value later; the estimate does not stumble over it."""
    assert cost("chat", max_tokens=wrong, max_completion_tokens=wrong, n=wrong) == cost("chat")
    assert cost("completions", prompt=wrong) == cost("completions")


@pytest.mark.parametrize("endpoint", ["tokenize", "detokenize"])
def test_what_reaches_no_engine_costs_nothing(endpoint: Endpoint) -> None:
    """Counting tokens takes no room behind the Router."""
    assert cost(endpoint, max_tokens=5) == RequestCost(0, 0, 0.0)
