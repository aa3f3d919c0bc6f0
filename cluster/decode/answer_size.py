"""Bounds the size of an answer, before any of it is made.

vLLM makes an answer in the event loop that carries all streams, and ``max_tokens`` does not bound all of it: ``echo``,
``prompt_logprobs`` and ``return_token_ids`` repeat the prompt, once for each of ``n``. So the size is estimated from
the request, when its prompts have been tokenized.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cluster.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

MAX_ANSWER_BYTES: Final = 16 * 2**20
"""The most bytes of an answer that is not streamed, or of one piece of a stream. vLLM makes log-probabilities as one
object each. Measured (two shared cores of an AMD EPYC, `top_logprobs: 20` over 8,192 tokens, 2026-11-30): 11.8 MB of
JSON take 3.0 s of CPU, in which no other stream goes on."""

TEXT_BYTES: Final = 4
"""A token's text, on average."""
ID_BYTES: Final = 7
"""A token's number, with its comma."""
LOGPROB_BYTES: Final = 70
"""One log-probability with its token, as an object. Measured: 68 to 72 bytes."""
LEGACY_LOGPROB_BYTES: Final = 30
"""One log-probability in the ``logprobs`` of /v1/completions, where the token is a key. Measured: 28 to 32 bytes."""


class AnswerSize:
    """Adds up the estimated size of the answer to one request, prompt by prompt.

    A chat may leave open how many tokens it wants. It then gets as many as fit the limit.

    Args:
        request: The request as vLLM has parsed it. A chat that leaves its length open gets ``max_completion_tokens`` if
            its answer could be too large.
    """

    def __init__(self, request: Any) -> None:
        self._request: Final = request
        self._fields: Final = dict(vars(request))  # attributes would warn of fields that vLLM deprecates
        self._is_chat: Final = "messages" in self._fields
        self._parts: Final[Counter[str]] = Counter()

    def add(self, num_tokens: int, num_text_bytes: Callable[[], int], max_new_tokens: int) -> None:
        """Adds the answer to one prompt.

        Args:
            num_tokens: The tokens of the prompt, pictures included.
            num_text_bytes: Computes the bytes of its text.
            max_new_tokens: The most tokens that fit the context after it.

        Raises:
            InvalidField: The answer would be too large. The error names the field that adds the most.
        """
        if "return_token_strs" in self._fields:
            self._add_tokenized(num_tokens, num_text_bytes)
        else:
            self._add_prompt(num_tokens, num_text_bytes)
            self._add_generated(max_new_tokens)
        num_bytes = self.num_bytes
        if num_bytes > MAX_ANSWER_BYTES:
            [(param, _)] = self._parts.most_common(1)
            message = (
                f"The answer could have {num_bytes} bytes; at most {MAX_ANSWER_BYTES} are sent at a time. "
                f"Most of them come from {param}; {ADVICE[param]}."
            )
            raise InvalidField(message, param=param, asked_bytes=num_bytes, limit_bytes=MAX_ANSWER_BYTES)

    @property
    def num_bytes(self) -> int:
        """The estimated bytes of the answer to all prompts so far."""
        return self._parts.total()

    def _add_tokenized(self, num_tokens: int, num_text_bytes: Callable[[], int]) -> None:
        if self._get("return_token_strs"):
            # A string has quotes and a comma. A byte of the text may become a character of two bytes.
            self._parts["return_token_strs"] += (ID_BYTES + 3) * num_tokens + 2 * num_text_bytes()
        else:
            self._parts["messages" if self._is_chat else "prompt"] += ID_BYTES * num_tokens

    def _add_prompt(self, num_tokens: int, num_text_bytes: Callable[[], int]) -> None:
        """Adds what the answer repeats of the prompt: /v1/completions in each choice, a chat once."""
        num_choices = self._get("n") or 1
        num_copies = 1 if self._is_chat else num_choices
        if self._get("return_token_ids"):
            self._parts["return_token_ids"] += num_copies * ID_BYTES * num_tokens
        if self._get("return_prompt_text"):
            self._parts["return_prompt_text"] += num_text_bytes()
        num_logprobs, echo = self._get("prompt_logprobs"), self._get("echo")
        if num_logprobs is not None:
            self._parts["prompt_logprobs"] += num_copies * LOGPROB_BYTES * (num_logprobs + 1) * num_tokens
        if not echo:
            return
        self._parts["echo"] += num_choices * num_text_bytes()
        asked = self._get("top_logprobs" if self._is_chat else "logprobs")
        if asked is not None:
            # vLLM computes as many log-probabilities of the prompt. A whole answer has them in two fields.
            is_twice = num_logprobs is None and not self._get("stream")
            each = (LOGPROB_BYTES if is_twice else 0) + (0 if self._is_chat else LEGACY_LOGPROB_BYTES)
            self._parts["echo"] += num_copies * each * (asked + 1) * num_tokens

    def _add_generated(self, max_new_tokens: int) -> None:
        """Adds the tokens that the model may make. A stream sends them in pieces of ``stream_interval``."""
        limits = [self._get("max_completion_tokens"), self._get("max_tokens")]
        limits = [limit for limit in limits if limit is not None]
        num_tokens = min([max_new_tokens, *limits[:1]])
        if self._get("stream"):
            num_tokens = min(num_tokens, self._get("stream_interval") or 1)
        num_bytes = TEXT_BYTES + (ID_BYTES if self._get("return_token_ids") else 0)
        if (num_logprobs := self._num_logprobs()) is not None:
            num_bytes += (LOGPROB_BYTES if self._is_chat else LEGACY_LOGPROB_BYTES) * (num_logprobs + 1)
        num_bytes *= self._get("n") or 1
        num_fitting = max(1, (MAX_ANSWER_BYTES - self.num_bytes) // num_bytes)
        if not limits and num_fitting < num_tokens:
            self._request.max_completion_tokens = num_tokens = num_fitting
        self._parts["n" if num_logprobs is None else "logprobs"] += num_bytes * num_tokens

    def _num_logprobs(self) -> int | None:
        """The alternatives to each token that the model makes, or None without log-probabilities."""
        if not (self._get("logprobs") if self._is_chat else self._get("logprobs") is not None):
            return None
        if named := self._get("logprob_token_ids"):
            return len(named)
        return int(self._get("top_logprobs") or 0) if self._is_chat else int(self._get("logprobs"))

    def _get(self, name: str) -> Any:
        return self._fields.get(name)


def check_text_size(num_bytes: int) -> None:
    """Refuses a request for /detokenize whose text would be too long.

    Raises:
        InvalidField: It has more than ``MAX_ANSWER_BYTES``.
    """
    if num_bytes > MAX_ANSWER_BYTES:
        message = (
            f"The text of the tokens has {num_bytes} bytes; at most {MAX_ANSWER_BYTES} are sent at a time. "
            "Send fewer tokens."
        )
        raise InvalidField(message, param="tokens", asked_bytes=num_bytes, limit_bytes=MAX_ANSWER_BYTES)


ADVICE: Final = {
    "prompt": "send a shorter text",
    "messages": "send a shorter text",
    "return_token_strs": "leave it out, or send a shorter text",
    "return_token_ids": "leave it out, or send fewer prompts or a smaller n",
    "return_prompt_text": "leave it out",
    "prompt_logprobs": "ask for fewer, or send fewer or shorter prompts",
    "echo": "leave it out, ask for fewer logprobs, or send fewer or shorter prompts",
    "logprobs": "set max_tokens, ask for fewer of them, or stream the answer",
    "n": "set max_tokens, ask for fewer answers, or stream them",
}
"""The advice for a client, by the field that adds the most."""


class TokenLengths:
    """The lengths of the texts of a tokenizer's tokens, in bytes.

    Args:
        vocabulary: The number of each token. A byte-level tokenizer writes each byte of a text as one character.
    """

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._lengths: NDArray[np.int64] = np.zeros(max(vocabulary.values(), default=-1) + 1, np.int64)
        for token, number in vocabulary.items():
            self._lengths[number] = len(token)

    def of(self, tokens: Sequence[int]) -> int:
        """The bytes of a text of these tokens. Tokens that the tokenizer does not have count nothing."""
        numbers = np.asarray(tokens, np.int64)
        return int(self._lengths[numbers[(numbers >= 0) & (numbers < len(self._lengths))]].sum())
