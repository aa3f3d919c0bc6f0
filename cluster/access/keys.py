"""The entries of a file of keys. A key itself is never stored: the file has its SHA-256.

A plain hash is enough, because a key is 32 random bytes: nobody can try them all. Passwords would need a slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import TYPE_CHECKING, Annotated, Any, Final

import yaml
from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from cluster.config import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_KEYS: Final = 10_000
PREFIX: Final = "prism-"
"""The beginning of each key that Prism makes, so that scanners for leaked secrets can find one."""

MAX_LIMIT: Final = 10**12

Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


class KeysError(ValueError):
    """A file of keys cannot be used. The message never repeats what the file says, because that may be a secret."""


class KeyEntry(Frozen):
    """The rights and limits of one key."""

    tenant: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """The name of the tenant in logs and metrics. Keys with the same tenant share what is cached."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The SHA-256 of the key, in hex."""
    models: frozenset[str] | None = None
    """The models that the key may use; None for all."""
    requests_per_minute: Limit | None = None
    """The most requests for answers or tokens in a minute."""
    picture_tokens_per_minute: Limit | None = None
    """The most tokens of pictures in a minute, as estimated from the pictures' headers."""
    max_concurrent: Limit | None = None
    """The most requests for answers or tokens at a time."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Requests with a higher priority go first where requests wait."""
    operator: bool = False
    """``true`` lets the key read ``/status`` and ``/metrics``."""
    expires: AwareDatetime | None = None
    """The time from which on the key is not valid, with its time zone."""

    def allows(self, model: str) -> bool:
        """Returns True if the key may use a model."""
        return self.models is None or model in self.models


class KeyRing:
    """All keys that are known.

    Args:
        entries: One for each key.

    Raises:
        KeysError: Two entries have the same hash, or there are too many.
    """

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        self.entries: Final[dict[str, KeyEntry]] = {}
        """The entries by the hashes of their keys."""
        for number, entry in enumerate(entries):
            if entry.sha256 in self.entries:
                raise KeysError(f"entry {number}: another entry has the same sha256; give each key once")
            if number == MAX_KEYS:
                raise KeysError(f"there are more than {MAX_KEYS} keys")
            self.entries[entry.sha256] = entry

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, key: bytes) -> KeyEntry | None:
        """Returns the entry of a key; None if there is none.

        The dictionary is asked for a hash. Its time may tell something about stored hashes, but nobody can choose a
        key by its hash. The comparison that decides takes constant time.
        """
        digest = hash_of(key)
        entry = self.entries.get(digest)
        is_equal = hmac.compare_digest(entry.sha256 if entry else "0" * len(digest), digest)
        return entry if is_equal else None


def new_key() -> str:
    """A new key of 32 random bytes."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: bytes) -> str:
    """The hash of a key, as a file of keys has it."""
    return hashlib.sha256(key).hexdigest()


def parse_entries(text: bytes) -> list[KeyEntry]:
    """Reads the text of one file: a list of entries, as JSON or YAML.

    Raises:
        KeysError: The text is no such list. The message names the entry and the field, and quotes no value.
    """
    content = _loaded(text)
    if content is None:  # an empty file, in which nobody has a key yet
        return []
    if not isinstance(content, list):
        raise KeysError("the file must be a list of entries; `prism key` prints one")
    if len(content) > MAX_KEYS:
        raise KeysError(f"there are more than {MAX_KEYS} keys")
    try:
        return ENTRIES.validate_python(content)
    except ValidationError as error:
        raise KeysError(_problem(error)) from None


ENTRIES: Final = TypeAdapter(list[KeyEntry])


class _PlainLoader(yaml.CSafeLoader):
    """Reads YAML without merge keys, by which a small text can stand for a huge one, and without repeated fields."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leaves merge keys as they are; nothing can be made of them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        content = super().construct_mapping(node, deep)
        if len(content) < len(node.value):
            raise yaml.YAMLError
        return content


def _loaded(text: bytes) -> Any:
    # The exceptions quote the text, so they are not chained.
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506 -- it is a safe loader
    except Exception:  # noqa: BLE001 -- tags such as !!bool raise KeyError and others
        raise KeysError("the file is neither JSON nor YAML, or it gives a field twice") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise KeysError("the file gives a field twice")
    return content


def _problem(error: ValidationError) -> str:
    """The first problem, in words that quote nothing of the file but the names of known fields."""
    [first, *others] = error.errors(include_input=False, include_url=False, include_context=False)
    number, *path = first["loc"]
    known = [str(name) for name in path[:1] if name in KeyEntry.model_fields]
    where = ".".join([f"entry {number}", *known])
    advice = {
        "extra_forbidden": f"there is an unknown field; the fields are {', '.join(KeyEntry.model_fields)}",
        "string_pattern_mismatch": "sha256 has 64 hex digits in lower case, and tenant up to 64 of A-Z a-z 0-9 _ . -",
        "missing": "the field is missing",
    }.get(first["type"], f"the value cannot be used ({first['type']})")
    return f"{where}: {advice}" + (f" (and {len(others)} other problems)" if others else "")
