"""Who comes first on CPU cores that pools share: who carries tokens, and an engine that has no cores of its own comes
last.

Linux's niceness, on top of what a process starts with: a step is a quarter more or less of a core, as far as others
want it. What is not named here talks to clients or engines. It needs little, and somebody waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cluster.config import DecoderConfig

SHARING_ENGINE: Final = 15
"""Of an engine that no core is reserved for: a thirtieth of what pictures get. It computes all the time; a new picture
would have a third of a core. Encoded first, it joins steps that are made anyway. With eight users of windows of
pictures on two cores, a tenth took the mean time to the first token from 0.70 to 0.42 s, and the gaps between tokens
stayed what they were."""

PICTURES_BESIDE_ENGINE: Final = 5
"""Of the threads that preprocess and encode, where engines compute on cores or GPUs of their own: a third of what a
thread at 0 gets. Else pictures would push those who carry tokens onto the engines' cores: beside text streams on two
cores, one for the decoder and one for the encoder, the longest gap while pictures came was 16 ms with them at 0, 11 ms
so (median of five)."""


def of_pictures(decoder: DecoderConfig) -> int:
    """Of the threads that preprocess and encode.

    Where engines give way already, pictures need not: with them at 0, mean times to the first token were 0.31 s for
    those eight users, 0.35 s at 5 (four starts of both, in alternation).
    """
    return 0 if decoder.shares_cores else PICTURES_BESIDE_ENGINE
