"""How long the stages of the paced cluster take."""

from __future__ import annotations

from cluster.config import Frozen


class Pace(Frozen):
    """How long the stages take, and what a decoder sends.

    A request may change the values of its decoder for itself, in its field ``pace``. The last three belong to the whole
    engine, and no request can change them.
    """

    pixel_s: float = 2.8e-5
    """Seconds of a preprocessor per stored pixel."""
    patch_s: float = 0.005
    """Seconds of an encoder per patch."""
    token_s: float = 0.0002
    """Seconds of a decoder per prompt token."""
    step_s: float = 0.02
    """Seconds of a decoder per step, without the prompt tokens in it. A step gives each answer its next piece."""
    piece_tokens: int = 1
    """The tokens of a piece. Real decoders join tokens while they carry many streams."""
    event_chars: int = 0
    """The least length of the event of one token. An event of vLLM has about 230 characters."""
    step_tokens: int = 8192
    """The most tokens of one step. A longer prompt takes several steps."""
    max_running: int = 64
    """The most answers that one decoder makes at a time."""
    kv_tokens: int = 100_000
    """The tokens that fit into the KV cache of one decoder."""
