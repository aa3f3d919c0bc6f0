"""Checks each prompt between its tokenization and everything else that vLLM does with it.

A prompt is checked for two things. Its pictures must stay in the places where the client put them, and the answer to it
must not be too large.

vLLM puts a request's pictures, in order, wherever the prompt holds the token that stands for a picture. In Qwen's
models this is ``<|image_pad|>``, and a text that spells it would take the place of a picture. So a prompt must hold
exactly as many of these tokens as the request has pictures. Tokens are counted, not text, because many texts become
this token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, PrivateAttr
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest, TokenizeCompletionRequest
from vllm.renderers import TokenizeParams

from cluster.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm.config import ModelConfig

    from cluster.decode.answer_size import AnswerSize, TokenLengths

    Check = Callable[[Any, ModelConfig, Sequence[int]], None]
    """Gets vLLM's tokenizer, vLLM's model configuration and the tokens of a prompt, and refuses by raising."""


@dataclass(frozen=True)
class PromptCheck:
    """The check of the prompts of one request.

    Args:
        size: Adds up the size of the answer.
        lengths: The lengths of the texts of tokens.
        num_picture_tokens: The tokens of each picture in the request. A picture that occurs twice counts twice.
    """

    size: AnswerSize
    lengths: TokenLengths
    num_picture_tokens: Sequence[int]

    def __call__(self, tokenizer: Any, model: ModelConfig, tokens: Sequence[int]) -> None:
        """Checks a prompt in which each picture is still one token.

        Raises:
            InvalidField: The text spells the token that stands for a picture, or the answer would be too large.
        """
        if self.num_picture_tokens and tokens.count(model.hf_config.image_token_id) != len(self.num_picture_tokens):
            marker = tokenizer.decode([model.hf_config.image_token_id])
            message = (
                f"The text holds {marker}, which would take the place of a picture; "
                "leave it out, or leave the pictures out."
            )
            raise InvalidField(message, param="messages")
        num_tokens = len(tokens) - len(self.num_picture_tokens) + sum(self.num_picture_tokens)
        self.size.add(num_tokens, partial(self.lengths.of, tokens), max(0, model.max_model_len - num_tokens))


@dataclass(frozen=True)
class CheckedTokens(TokenizeParams):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's rules for a prompt's tokens, and Prism's check after them."""

    check: Callable[[Any, Sequence[int]], None] | None = None

    def apply_post_tokenization(self, tokenizer: Any, prompt: Any) -> Any:
        """vLLM calls this with each prompt before it puts the pictures in.

        Raises:
            InvalidField: The check refuses the prompt.
        """
        prompt = super().apply_post_tokenization(tokenizer, prompt)
        assert self.check is not None
        self.check(tokenizer, prompt["prompt_token_ids"])
        return prompt


class CheckedRequest(BaseModel):
    """The base of requests whose prompts are checked."""

    _check: Check | None = PrivateAttr(default=None)

    def checked(self, check: Check) -> Self:
        """Sets the check of the request's prompts."""
        self._check = check
        return self

    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        """vLLM calls this for its rules about the prompt's tokens."""
        plain: TokenizeParams = super().build_tok_params(model_config)  # type: ignore[misc]
        assert self._check is not None

        def check(tokenizer: Any, tokens: Sequence[int]) -> None:
            assert self._check is not None
            self._check(tokenizer, model_config, tokens)

        return CheckedTokens(**vars(plain), check=check)


class CheckedChat(CheckedRequest, ChatCompletionRequest):  # type: ignore[misc]
    """A request for /v1/chat/completions."""


class CheckedCompletion(CheckedRequest, CompletionRequest):  # type: ignore[misc]
    """A request for /v1/completions."""


class CheckedTokenizeChat(CheckedRequest, TokenizeChatRequest):  # type: ignore[misc]
    """A request for /tokenize with a conversation."""


class CheckedTokenizeText(CheckedRequest, TokenizeCompletionRequest):  # type: ignore[misc]
    """A request for /tokenize with a text."""
