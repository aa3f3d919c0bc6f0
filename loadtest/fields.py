"""Reads the fields of one JSON or YAML object strictly, and says in plain words what is wrong."""

from __future__ import annotations

import math
from typing import Any, Final

MISSING: Final[Any] = object()


class BadFields(ValueError):
    """A field is missing, unknown or wrong. The message names the place and the field."""


class Fields:
    """Takes the fields of an object one by one. ``end`` refuses those that nobody took.

    Args:
        value: The object.
        where: Its place in the file, such as ``line 3``; the messages begin with it.
    """

    def __init__(self, value: object, where: str) -> None:
        self._where: Final = where
        if not isinstance(value, dict):
            raise BadFields(f"{where}: it must be an object with named fields, not {value!r:.80}")
        self._left: Final = {**value}
        self._names: Final[list[str]] = []

    def number(self, name: str, *, least: float = 0.0, most: float = math.inf, default: Any = MISSING) -> Any:
        """Takes a finite number from ``least`` to ``most``."""
        value = self._take(name, default)
        if value is default:
            return default
        bounds = f"a number from {least:g} on" if most == math.inf else f"a number from {least:g} to {most:g}"
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not least <= value <= most:
            raise self.wrong(name, bounds, value)
        return float(value)

    def whole(self, name: str, *, least: int, default: Any = MISSING) -> Any:
        """Takes a whole number of at least ``least``."""
        value = self._take(name, default)
        if value is default:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(name, f"a whole number from {least} on", value)
        return value

    def text(self, name: str, *, default: Any = MISSING) -> Any:
        """Takes a text."""
        value = self._take(name, default)
        if value is not default and not isinstance(value, str):
            raise self.wrong(name, "a text", value)
        return value

    def items(self, name: str, *, default: Any = MISSING) -> list[Any]:
        """Takes a list."""
        value = self._take(name, default)
        if not isinstance(value, list | tuple):
            raise self.wrong(name, "a list", value)
        return [*value]

    def inner(self, name: str) -> Fields | None:
        """Takes an object inside this one, or None if it is absent."""
        value = self._take(name, None)
        return None if value is None else self.nested(name, value)

    def nested(self, name: str, value: object) -> Fields:
        """The fields of a value inside this object; ``name`` says where it is."""
        return Fields(value, f"{self._where}: {name}")

    def end(self) -> None:
        """Refuses fields that nobody took.

        Raises:
            BadFields: There are any.
        """
        for name in self._left:
            raise BadFields(f"{self._where}: {name}: there is no such field; there are {', '.join(self._names)}")

    def wrong(self, name: str, wanted: str, value: object) -> BadFields:
        """The error for a field whose value is not as wanted."""
        return BadFields(f"{self._where}: {name}: it must be {wanted}, not {value!r:.80}")

    def _take(self, name: str, default: Any) -> Any:
        self._names.append(name)
        value = self._left.pop(name, default)
        if value is MISSING:
            raise BadFields(f"{self._where}: {name}: it is missing")
        return value
