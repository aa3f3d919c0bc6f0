"""Small schedules and round speeds for tests of the simulator, so that times can be computed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.scaling.schedules.schedule import Arrival, Heading, ScheduledPicture
from cluster.scaling.simulation.replicas import PoolSize
from cluster.scaling.simulation.speeds import DecoderSpeeds, EncoderSpeeds, PreprocessorSpeeds, RouterSpeeds, Speeds

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE: Final = 280
PATCHES, TOKENS, PIXELS = 400, 100, SIDE**2
"""A picture of 280 × 280 pixels."""

ROUND: Final = Speeds(
    router=RouterSpeeds(request_s=0.01, token_s=0.0, picture_s=0.0, pixel_s=0.0, start_s=10),
    preprocessor=PreprocessorSpeeds(picture_s=0.1, pixel_s=0.0, start_s=10),
    encoder=EncoderSpeeds(run_s=0.0, patch_s=0.001, batch_patches=1000, start_s=20),
    decoder=DecoderSpeeds(prefill_tokens_per_s=1000, step_s=0.02, kv_tokens=100_000, start_s=60),
)
"""A request is read in 10 ms. A picture is prepared in 100 ms and encoded in 400 ms. A token of a prompt takes 1 ms.
A step takes 20 ms."""


def sizes(router: int = 1, preprocessor: int = 1, encoder: int = 1, decoder: int = 1) -> dict[str, PoolSize]:
    """Returns fixed sizes. An encoder has one GPU and a decoder four."""
    return {
        "router": PoolSize(router),
        "preprocessor": PoolSize(preprocessor),
        "encoder": PoolSize(encoder, num_gpus=1),
        "decoder": PoolSize(decoder, num_gpus=4),
    }


def heading(duration_s: float = 100.0) -> Heading:
    """Returns the first line of a schedule."""
    return Heading(source="a test", seed=0, duration_s=duration_s)


def arrival(
    at_s: float,
    *pictures: str,
    text_tokens: int = 100,
    output_tokens: int = 1,
    conversation: str | None = None,
    turn: int = 0,
) -> Arrival:
    """Returns a request with pictures of ``SIDE`` × ``SIDE`` pixels, by their names."""
    return Arrival(
        at_s=at_s,
        client="a client",
        text_tokens=text_tokens,
        pictures=tuple(ScheduledPicture(name=name, width=SIDE, height=SIDE) for name in pictures),
        output_tokens=output_tokens,
        conversation=conversation,
        turn=turn,
    )


def every(period_s: float, num: int, *, pictures: bool = False, output_tokens: int = 1) -> Sequence[Arrival]:
    """Returns requests at regular times, each with a new picture or without any."""
    return [
        arrival(number * period_s, *([f"picture {number}"] if pictures else []), output_tokens=output_tokens)
        for number in range(num)
    ]
