"""The cost of a request, estimated before any work is done for it.

In: the body of a request, and the number of its pictures or their sizes from their headers. Out: a ``RequestCost``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.messages import Endpoint

TEXT_BYTES_PER_TOKEN: Final = 4
PATCHES_PER_TOKEN: Final = 4
"""The vision tower merges 2 × 2 patches into one token of the prompt."""
ANSWER_WEIGHT: Final = 2
"""A token of an answer costs as much as so many of a prompt.

Source: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024, which takes the ratio of usual prices.
"""
UNKNOWN_ANSWER_TOKENS: Final = 256
"""The answer of a chat that sets no length is taken to be so long."""
COMPLETION_TOKENS: Final = 16
"""The OpenAI API's default for the length of a completion."""
MAX_SEQUENCES: Final = 256


@dataclass(frozen=True, slots=True)
class RequestCost:
    """The load of a request on the stages behind the Router.

    ``num_sequences`` are the answers that an engine makes at the same time. ``num_patches`` are to be prepared and
    encoded. ``weighted_tokens`` are the tokens of the prompt, and ``ANSWER_WEIGHT`` times those of all answers.
    """

    num_sequences: int
    num_patches: int
    weighted_tokens: float


def cost_of(
    endpoint: Endpoint, body: Mapping[str, Any], *, num_text_bytes: int, num_patches: int, max_tokens: int
) -> RequestCost:
    """Estimates the cost of a request. vLLM has not checked the body, so any field may have any value.

    Args:
        endpoint: The endpoint that was called.
        body: The client's JSON.
        num_text_bytes: The bytes of the body without its pictures.
        num_patches: The patches of all its pictures.
        max_tokens: The most tokens that a sequence can have, ``max_model_len``.
    """
    if endpoint not in ("chat", "completions"):
        return RequestCost(0, 0, 0.0)
    prompt = body.get("prompt")
    num_prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1
    num_sequences = min(MAX_SEQUENCES, num_prompts * _positive(body.get("n"), 1))
    default_tokens = COMPLETION_TOKENS if endpoint == "completions" else UNKNOWN_ANSWER_TOKENS
    asked_tokens = _positive(body.get("max_completion_tokens"), _positive(body.get("max_tokens"), default_tokens))
    prompt_tokens = num_text_bytes / TEXT_BYTES_PER_TOKEN + num_patches / PATCHES_PER_TOKEN
    answer_tokens = num_sequences * min(asked_tokens, max_tokens)
    return RequestCost(num_sequences, num_patches, prompt_tokens + ANSWER_WEIGHT * answer_tokens)


def _positive(value: object, default: int) -> int:
    """A whole number from 1 on, or the default for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else default
