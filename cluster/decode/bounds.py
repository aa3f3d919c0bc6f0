"""Limits on what a request may ask of the engine, checked after vLLM has parsed its fields.

vLLM accepts "7" and 7.0 for the integer 7, so the parsed values are checked.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from cluster.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

MAX_ANSWERS: Final = 256
"""The most answers to one request: ``n`` for each of its prompts. vLLM would allow 16384, and serve nobody else for
45 s."""


def check_bounds(request: BaseModel) -> None:
    """Refuses values that vLLM accepts and should not: NaN, infinity, integers beyond 64 bits, and too many answers
    (``n``).

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


def _numbers(request: BaseModel) -> Iterator[tuple[str, int | float]]:
    """Pairs of a path and a number, for each number that vLLM sends to its engine: fields, and values of their
    objects."""
    for name, value in request:
        inner = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        fields: dict[str, Any] = {f"{name}.{key}": part for key, part in inner.items()} or {name: value}
        yield from ((param, number) for param, number in fields.items() if isinstance(number, int | float))
