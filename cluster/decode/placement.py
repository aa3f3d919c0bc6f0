"""Keeps pictures where the client put them.

vLLM puts a request's pictures, in order, wherever the prompt holds the token that stands for one. In Qwen's models that
is ``<|image_pad|>``, and text that spells it takes the place of a picture. So the prompt of a request with pictures
must hold as many of these tokens as the request has pictures. That is counted in tokens, because text has many ways to
come by them.
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
    """vLLM's rules for a prompt's tokens, and one more."""

    picture_token: int = -1
    num_pictures: int = 0

    def apply_post_tokenization(self, tokenizer: Any, prompt: Any) -> Any:
        """Called by vLLM with the prompt before its pictures are put in.

        Raises:
            InvalidField: The text spells the token that stands for a picture.
        """
        prompt = super().apply_post_tokenization(tokenizer, prompt)
        if prompt["prompt_token_ids"].count(self.picture_token) != self.num_pictures:
            marker = tokenizer.decode([self.picture_token])
            message = f"The text holds {marker}, which would take the place of a picture; leave it out, or leave the pictures out."
            raise InvalidField(message, param="messages")
        return prompt


class PlacedChatRequest(ChatCompletionRequest):  # type: ignore[misc]
    """A chat request that is refused unless its prompt has exactly the places of its pictures."""

    _num_pictures: int = PrivateAttr(default=0)

    def expect(self, num_pictures: int) -> Self:
        """Sets how many pictures there are; one that stands there twice counts twice."""
        self._num_pictures = num_pictures
        return self

    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        """Called by vLLM for its rules about the prompt's tokens."""
        plain = super().build_tok_params(model_config)
        if self._num_pictures == 0:
            return plain
        token = model_config.hf_config.image_token_id
        return CountedTokens(**vars(plain), picture_token=token, num_pictures=self._num_pictures)
