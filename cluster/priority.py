"""The niceness of processes and threads that share CPU cores.

Processes that carry tokens come first. An engine that shares its cores comes last.

The values are Linux's niceness, added to the niceness of the process. Each step means about a quarter more or less CPU
time, as long as others want the core. Everything that is not named here talks to clients or engines; it needs little
CPU time, and somebody waits for it, so it stays at 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cluster.config import DecoderConfig

SHARING_ENGINE: Final = 15
"""Niceness of an engine without reserved cores; it gets about a thirtieth of the CPU time of the vision tower. The
engine always has work, while a new picture would otherwise get only a third of a core. A picture that is encoded
early joins engine steps that are made anyway. Measured (eight users with windows of pictures, two cores): mean time
to first token 0.70 s at niceness 0 → 0.42 s at a tenth of the CPU time; the gaps between tokens did not change."""

PICTURES_BESIDE_ENGINE: Final = 5
"""Niceness of preprocessing and encoding threads when engines have dedicated cores or GPUs; about a third of a
niceness-0 thread's CPU share. Without it they push token-carrying processes onto the engines' cores. Measured (text
streams, two cores, one for the decoder and one for the encoder): longest gap while pictures arrive 16 ms at 0 → 11
ms at 5, median of five."""


def of_pictures(decoder: DecoderConfig) -> int:
    """Niceness of the processes that preprocess and of the threads that encode.

    It is 0 when engines run at low priority on shared cores. Measured (eight users with windows of pictures, two cores,
    four starts of each in alternation): mean time to first token 0.35 s at 5 → 0.31 s at 0.
    """
    return 0 if decoder.shares_cores else PICTURES_BESIDE_ENGINE
