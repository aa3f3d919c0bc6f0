"""The work of a schedule per second, and the busiest part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.scaling.simulation.prompts import PromptMaker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.checkpoint import ProcessorSettings
    from cluster.scaling.schedules.schedule import Arrival, Heading

PIXELS_PER_TOKEN: Final = 28**2
"""Qwen2.5-VL makes one token from 28 × 28 pixels."""


@dataclass(frozen=True, slots=True)
class ScheduleLoad:
    """The work of a schedule per second. Each picture, and each turn of a conversation, is counted once unless
    something else is said.

    Args:
        requests: Requests per second.
        new_tokens: Tokens of prompts per second, without the earlier turns of conversations.
        output_tokens: Tokens of answers per second.
        patches: Patches per second.
        pixels: Pixels per second, of pictures as sent.
        sent_pixels: The same, but a picture counts each time that it is sent, as with each turn of its conversation.
        sent_pictures: Pictures per second, counted each time.
        pictures: Pictures per second.
        longest_tokens: The most tokens of one request with its answer.
        context_tokens: The tokens before a token of an answer, on average.
    """

    requests: float
    new_tokens: float
    output_tokens: float
    patches: float
    pixels: float
    sent_pixels: float
    sent_pictures: float
    pictures: float
    longest_tokens: int
    context_tokens: float

    @classmethod
    def of(cls, heading: Heading, arrivals: Sequence[Arrival], settings: ProcessorSettings) -> ScheduleLoad:
        """Adds up the work of a schedule."""
        maker = PromptMaker(settings)
        prompts = [maker.prompt(one) for one in arrivals]
        pictures = {picture.digest: picture for prompt in prompts for picture in prompt.pictures}.values()
        lengths = [(prompt.num_tokens, one.output_tokens) for prompt, one in zip(prompts, arrivals, strict=True)]
        num_output = sum(output for _, output in lengths)
        return cls(
            requests=len(arrivals) / heading.duration_s,
            new_tokens=(sum(one.text_tokens for one in arrivals) + sum(one.num_tokens for one in pictures))
            / heading.duration_s,
            output_tokens=num_output / heading.duration_s,
            patches=sum(picture.num_patches for picture in pictures) / heading.duration_s,
            pixels=sum(picture.num_pixels for picture in pictures) / heading.duration_s,
            sent_pixels=sum(one.num_pixels for prompt in prompts for one in prompt.pictures) / heading.duration_s,
            sent_pictures=sum(len(prompt.pictures) for prompt in prompts) / heading.duration_s,
            pictures=len(pictures) / heading.duration_s,
            longest_tokens=max((length + output for length, output in lengths), default=0),
            context_tokens=sum(output * (length + output / 2) for length, output in lengths) / max(1, num_output),
        )


def busiest_part(heading: Heading, arrivals: Sequence[Arrival], duration_s: float) -> tuple[Heading, list[Arrival]]:
    """The part of a schedule in which most work arrives, as a schedule of its own.

    Work is counted in tokens of texts, answers and pictures. The part begins at an arrival. A schedule that is not
    longer is returned as it is.
    """
    if duration_s >= heading.duration_s:
        return heading, list(arrivals)
    sizes = [_size(one) for one in arrivals]
    best, best_first, total, end = -1.0, 0, 0.0, 0
    for first, one in enumerate(arrivals):
        while end < len(arrivals) and arrivals[end].at_s < one.at_s + duration_s:
            total += sizes[end]
            end += 1
        if total > best and one.at_s + duration_s <= heading.duration_s:
            best, best_first = total, first
        total -= sizes[first]
    start_s = arrivals[best_first].at_s if arrivals else 0.0
    part = [
        one.model_copy(update={"at_s": one.at_s - start_s})
        for one in arrivals
        if start_s <= one.at_s < start_s + duration_s
    ]
    source = f"{heading.source}; the busiest {duration_s:g} s, from {start_s:.0f} s"
    return heading.model_copy(update={"duration_s": duration_s, "source": source}), part


def _size(arrival: Arrival) -> float:
    pixels = sum(picture.width * picture.height for picture in arrival.pictures)
    return arrival.text_tokens + arrival.output_tokens + pixels / PIXELS_PER_TOKEN
