"""Turns the arrivals of a schedule into whole prompts, as request routers read them.

A later turn of a conversation sends everything of its earlier turns again. A prompt is a chain of links, as in
``cluster.routing.conversations``: first the new pictures of a turn, then its text, then its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from cluster.routing.conversations import Conversation, Link

if TYPE_CHECKING:
    from cluster.checkpoint import ProcessorSettings
    from cluster.messages import Digest
    from cluster.scaling.schedules.schedule import Arrival


@dataclass(frozen=True, slots=True)
class SizedPicture:
    """A picture of a prompt: its name, its pixels as sent, and the patches and tokens that it becomes."""

    digest: Digest
    num_pixels: int
    num_patches: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole prompt.

    Args:
        conversation: The prompt as routing sees it.
        pictures: Its pictures, each one once.
        answer: The link that its answer will be in the next turn.
    """

    conversation: Conversation
    pictures: tuple[SizedPicture, ...]
    answer: Link

    @property
    def num_tokens(self) -> int:
        """The tokens of the prompt."""
        return self.conversation.num_tokens


class PromptMaker:
    """Makes the prompts of a schedule, in the order of the arrivals.

    Args:
        settings: The processor's settings.
    """

    def __init__(self, settings: ProcessorSettings) -> None:
        self._settings: Final = settings
        self._last: Final[dict[str, Prompt]] = {}
        self._num_made = 0

    def prompt(self, arrival: Arrival) -> Prompt:
        """The prompt of an arrival. A turn whose earlier turns are not in the schedule begins a conversation."""
        self._num_made += 1
        last = self._last.get(arrival.conversation) if arrival.conversation is not None else None
        links = [*last.conversation.links, last.answer] if last else []
        pictures = {picture.digest: picture for picture in last.pictures} if last else {}
        name = links[-1].name if links else b""
        for one in arrival.pictures:
            num_pixels = one.width * one.height
            num_tokens = self._settings.num_tokens(num_pixels)
            name = _name(name, b"picture", one.name.encode())
            links.append(Link(name, num_tokens, one.name))
            pictures[one.name] = SizedPicture(one.name, num_pixels, self._settings.num_patches(num_pixels), num_tokens)
        name = _name(name, b"text", str(self._num_made).encode())  # every text is new
        links.append(Link(name, arrival.text_tokens))
        start = last.conversation.start if last else name
        made = Prompt(
            Conversation(tuple(links), sum(link.num_tokens for link in links), start),
            tuple(pictures.values()),
            Link(_name(name, b"answer", b""), arrival.output_tokens),
        )
        if arrival.conversation is not None:
            self._last[arrival.conversation] = made
        return made


def _name(before: bytes, kind: bytes, what: bytes) -> bytes:
    return blake2b(before + kind + what, digest_size=16).digest()
