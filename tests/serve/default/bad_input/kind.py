"""One kind of bad input, and short ways to write it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from tests.helpers.ask import chat, image
from tests.helpers.pictures import encoded, scene

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
PART: Final = "messages[0].content[0]"
URL: Final = f"{PART}.image_url.url"
PICTURE: Final = image(encoded(scene(), "PNG"))

Body = dict[str, Any] | bytes | None


@dataclass(frozen=True)
class Bad:
    """One kind of bad input with the refusal that it must get. A body of bytes is sent as it is, and any other body as
    JSON."""

    name: str
    code: str
    param: str | None
    body: Body = field(repr=False)
    status: int = 400
    path: str = CHAT
    method: str = "POST"

    @property
    def content(self) -> bytes | None:
        """The bytes of the request's body."""
        return json.dumps(self.body).encode() if isinstance(self.body, dict) else self.body


def ask(*content: Any, **options: Any) -> dict[str, Any]:
    """Returns the body of a chat request whose first content part is the one under test."""
    return chat(list(content), **options)
