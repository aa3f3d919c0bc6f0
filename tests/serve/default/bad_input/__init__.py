"""Bad input by name: what to send, and the status, code and field that must come back.

kind.py      one kind of bad input
content.py   what stands in messages: pictures, URLs, parts
fields.py    values of fields, at every endpoint
wire.py      what is wrong before a field is read: floods, broken JSON, routes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.serve.default.bad_input import content, fields, wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serve.default.bad_input.kind import Bad


def kinds() -> Iterator[Bad]:
    """Returns all kinds of bad input."""
    for section in (*content.SECTIONS, *fields.SECTIONS, *wire.SECTIONS):
        yield from section()
