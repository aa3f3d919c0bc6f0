"""Says in plain words what is wrong with the keys and values of an application file."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

WANTED: Final = {
    "missing": "it is missing",
    "int_type": "it must be an integer, not {given}",
    "int_parsing": "it must be an integer, not {given}",
    "int_from_float": "it must be an integer, not {given}",
    "float_type": "it must be a number, not {given}",
    "float_parsing": "it must be a number, not {given}",
    "bool_type": "it must be true or false, not {given}",
    "bool_parsing": "it must be true or false, not {given}",
    "string_type": "it must be text, not {given}",
    "string_pattern_mismatch": "it must match {pattern}, and {given} does not",
    "literal_error": "it must be {expected}, not {given}",
    "enum": "it must be {expected}, not {given}",
    "finite_number": "it must be a finite number, not {given}",
    "greater_than": "it must be above {gt}, not {given}",
    "greater_than_equal": "it must be at least {ge}, not {given}",
    "less_than": "it must be below {lt}, not {given}",
    "less_than_equal": "it must be at most {le}, not {given}",
    "model_type": "it must be a mapping, not {given}",
    "model_attributes_type": "it must be a mapping, not {given}",
    "dict_type": "it must be a mapping, not {given}",
    "list_type": "it must be a list, not {given}",
    "frozen_set_type": "it must be a list, not {given}",
    "value_error": "{error}",
}
"""The sentence for each kind of pydantic's errors. Other kinds keep pydantic's own words."""
MAX_GIVEN_CHARS: Final = 80
SURE: Final = 0.8
"""A key that is so similar to one of its mapping is a misspelling. Less similar, it may be a key of another mapping."""
OWN: Final = ("applications.args.", "applications.deployments.user_config.")
"""The paths of Prism's own settings."""


def unknown_key(key: object, path: str, schema: Collection[str], elsewhere: Mapping[str, Collection[str]]) -> str:
    """Returns a sentence about a key that its schema does not have, with the key or place that was probably meant.

    Args:
        key: The key.
        path: The path of its mapping, with a dot at its end.
        schema: The keys that the mapping may have.
        elsewhere: The keys of all mappings that a file may have, by the path of the mapping.
    """
    near = difflib.get_close_matches(str(key), schema, 1)
    if near and difflib.SequenceMatcher(None, str(key), near[0]).ratio() > SURE:
        return f"{path}{key}: there is no such key; did you mean {near[0]}?"
    is_own = path.startswith(OWN)
    alike = [where for where, keys in elsewhere.items() if key in keys and where.startswith(OWN) == is_own]
    if alike:
        places = " or ".join(where.removesuffix(".") or "the top" for where in alike[:2])
        return f"{path}{key}: there is no such key here; it belongs below {places}"
    if near:
        return f"{path}{key}: there is no such key; did you mean {near[0]}?"
    return f"{path}{key}: there is no such key; there are {', '.join(sorted(schema)) or 'none here'}"


def wrong_values(error: ValidationError, part: Mapping[str, Any], path: str) -> list[str]:
    """Returns a sentence for each wrong value: its key, what must be there, and what was given.

    Args:
        error: Pydantic's error about a mapping.
        part: The mapping.
        path: The path of the mapping, with a dot at its end.
    """
    return [_wrong_value(found, part, path) for found in error.errors(include_url=False)]


def _wrong_value(found: ErrorDetails, part: Any, path: str) -> str:
    keys = []
    for step in found["loc"]:  # pydantic's steps also name branches of unions
        try:
            part = part[step]
        except (LookupError, TypeError):
            keys += [str(step)] if found["type"] == "missing" else []
            continue
        keys += [step] if isinstance(step, str) else []
    where = path + ".".join(keys)
    try:
        given = json.dumps(found["input"], default=str)
    except (TypeError, ValueError):  # keys that are no text, or a mapping that holds itself
        given = str(found["input"])
    if len(given) > MAX_GIVEN_CHARS:
        given = f"{given[:MAX_GIVEN_CHARS]} …"
    details = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in found.get("ctx", {}).items()
    }
    details["given"] = given
    sentence = WANTED[found["type"]].format_map(details) if found["type"] in WANTED else f"{found['msg']} ({given})"
    return f"{where.removesuffix('.') or 'the file'}: {sentence}"
