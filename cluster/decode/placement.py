"""Keeps pictures in the places where the client put them.

vLLM puts a request's pictures, in order, wherever the prompt holds the token that stands for a picture. In Qwen's
models this is ``<|image_pad|>``, and a text that spells it would take the place of a picture. So a prompt must hold
exactly as many of these tokens as the request has pictures. Tokens are counted, not text, because many texts become
this token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import TokenizeParams

from cluster.errors import InvalidField

if TYPE_CHECKING:
    from vllm.config import ModelConfig


@dataclass(frozen=True)
class CountedTokens(TokenizeParams):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's rules for a prompt's tokens, and one more: the number of picture tokens must be right."""

    picture_token: int = -1
    num_pictures: int = 0

    def apply_post_tokenization(self, tokenizer: Any, prompt: Any) -> Any:
        """vLLM calls this with the prompt before it puts the pictures in.

        Raises:
            InvalidField: The text spells the token that stands for a picture.
        """
        prompt = super().apply_post_tokenization(tokenizer, prompt)
        if prompt["prompt_token_ids"].count(self.picture_token) != self.num_pictures:
            marker = tokenizer.decode([self.picture_token])
            message = (
                f"The text holds {marker}, which would take the place of a picture; "
                "leave it out, or leave the pictures out."
            )
            raise InvalidField(message, param="messages")
        return prompt


class PlacedChatRequest(ChatCompletionRequest):  # type: ignore[misc]
    """A chat request that is refused unless its prompt has as many picture tokens as pictures."""

    _num_pictures: int = PrivateAttr(default=0)

    def expect(self, num_pictures: int) -> Self:
        """Sets the number of pictures in the request. A picture that occurs twice counts twice."""
        self._num_pictures = num_pictures
        return self

    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        """vLLM calls this for its rules about the prompt's tokens."""
        plain = super().build_tok_params(model_config)
        if self._num_pictures == 0:
            return plain
        token = model_config.hf_config.image_token_id
        return CountedTokens(**vars(plain), picture_token=token, num_pictures=self._num_pictures)
