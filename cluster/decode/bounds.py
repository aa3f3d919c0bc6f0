"""Limits on what a request may ask of the engine, checked after vLLM has parsed its fields.

vLLM accepts "7" and 7.0 for the integer 7, so the parsed values are checked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_json

from cluster.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

MAX_ANSWERS: Final = 256
"""The most answers to one request: ``n`` for each of its prompts. vLLM would allow 16384, and serve nobody else for
45 s."""


OPTIONS: Final = (
    "logit_bias",
    "allowed_token_ids",
    "stop_token_ids",
    "stop",
    "bad_words",
    "logprob_token_ids",
    "structured_outputs",
    "response_format",
)
"""Fields of any length that vLLM prepares again for each prompt, and sends to its engine with each answer."""
MAX_OPTION_BYTES: Final = 4 * 2**20
"""The most bytes of ``OPTIONS`` as JSON, times the number of answers. Measured (two shared cores of an AMD EPYC, a
``logit_bias`` of 100,000 tokens or 1.2 MB, 2026-11-30): 78 ms of CPU for each prompt, without a pause between prompts.
A thousand prompts would stop every stream for 78 s."""


def check_bounds(request: BaseModel) -> None:
    """Refuses values that vLLM accepts and should not: NaN, infinity, integers beyond 64 bits, too many answers
    (``n``), and long options for many answers.

    Raises:
        InvalidField: A value is out of bounds; ``param`` names its field.
    """
    for param, value in _numbers(request):
        if not (math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63):
            raise InvalidField(f"{param} must be a finite number, and an integer must fit 64 bits.", param=param)
    prompt, num_per_prompt = getattr(request, "prompt", None), getattr(request, "n", None) or 1
    num_prompts = len(prompt) if isinstance(prompt, list) and isinstance(next(iter(prompt), None), str | list) else 1
    if num_prompts * num_per_prompt > max(num_prompts, MAX_ANSWERS):
        message = f"The request asks for {num_prompts * num_per_prompt} answers; at most {MAX_ANSWERS} are given."
        raise InvalidField(message, param="n", asked=num_prompts * num_per_prompt, limit=MAX_ANSWERS)
    _check_options(request, num_prompts * num_per_prompt)


def _check_options(request: BaseModel, num_answers: int) -> None:
    num_bytes = {name: len(to_json(value)) for name in OPTIONS if (value := vars(request).get(name))}
    asked_bytes = num_answers * sum(num_bytes.values())
    if asked_bytes > MAX_OPTION_BYTES and num_answers > 1:
        param = max(num_bytes, key=num_bytes.__getitem__)
        message = (
            f"{param} has {num_bytes[param]} bytes and applies to {num_answers} answers; all options for all answers "
            f"may have {MAX_OPTION_BYTES} bytes. Make it shorter, or ask for fewer answers at a time."
        )
        raise InvalidField(message, param=param, asked_bytes=asked_bytes, limit_bytes=MAX_OPTION_BYTES)


def _numbers(request: BaseModel) -> Iterator[tuple[str, int | float]]:
    """Pairs of a path and a number, for each number that vLLM sends to its engine: fields, and values of their
    objects."""
    for name, value in request:
        inner = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        fields: dict[str, Any] = {f"{name}.{key}": part for key, part in inner.items()} or {name: value}
        yield from ((param, number) for param, number in fields.items() if isinstance(number, int | float))
