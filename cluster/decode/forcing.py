"""A logits processor for vLLM that makes the engine generate tokens which are known already.

The engine's grammars, penalties and random generators then count these tokens as the engine's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

if TYPE_CHECKING:
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

FORCED_TOKENS: Final = "prism_forced_tokens"
"""The key in ``SamplingParams.extra_args``. Clients cannot set it: ``vllm_xargs`` is an operator's field."""


class ForcedTokens(LogitsProcessor):  # type: ignore[misc]  # vLLM's types are not followed
    """Leaves a request one choice for each of its first tokens. vLLM finds the class by the engine's flags, in each
    worker. Without such requests a step costs one look at an empty dict."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        del vllm_config, device, is_pin_memory
        self._forced: Final[dict[int, tuple[list[int], list[int]]]] = {}
        """The tokens to force and the tokens that were made, by the request's row in the batch."""

    def is_argmax_invariant(self) -> bool:
        """False: it changes the choice of greedy requests, too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called by vLLM before each step with the changes of the batch."""
        process_dict_updates(self._forced, batch_update, _forced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Changes the rows of ``logits``, [num_requests, vocab_size] float32, whose next token is known."""
        for row, (tokens, made) in self._forced.items():
            if len(made) < len(tokens):
                logits[row].fill_(float("-inf"))
                logits[row, tokens[len(made)]] = 0.0
        return logits


def _forced(params: SamplingParams, _: list[int] | None, made: list[int]) -> tuple[list[int], list[int]] | None:
    tokens = (params.extra_args or {}).get(FORCED_TOKENS)
    return (tokens, made) if tokens else None
