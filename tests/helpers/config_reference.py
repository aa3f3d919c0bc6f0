"""Writes ``docs/configuration.md`` from the configuration tree and the docstrings of its fields (``make docs``)."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cluster import config
from cluster.config import USER_CONFIGS, PrismConfig
from loadtest.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

PAGE: Final = ROOT / "docs" / "configuration.md"

INTRODUCTION: Final = """\
# Configuration

An application file such as `deployments/app.yaml` has two places for settings:

- **`args:`** says what each process is. A change restarts every replica. Most of this page lists its keys.
- **`deployments:`** says how many replicas there are, and holds what can be changed while they run. It is a list with
  an entry for each Serve deployment that differs from its defaults: `Router`, `Preprocessor`, `VisionEncoder`,
  `Decoder`. [The end of this page](#deployments) lists its keys.

[Operations](operations.md#what-a-change-restarts) says what each change restarts. Unknown keys are refused by name, and
a wrong value is refused with a sentence that says what would be right. Sizes are in bytes, times in seconds.

This page is made by `make docs`, from `cluster/config.py` and `tests/helpers/config_reference.py`; a test fails when it
is out of date.
"""

SERVE_KEYS: Final = (
    (
        "`num_replicas`",
        "an integer, ≥ 0, or `auto`",
        "1",
        "The number of replicas. `auto` leaves it to `autoscaling_config`.",
    ),
    (
        "`autoscaling_config`",
        "a mapping",
        "not set",
        "`min_replicas` and `max_replicas`, in place of `num_replicas`, and [four more keys](operations.md#scaling).",
    ),
    (
        "`max_ongoing_requests`",
        "an integer, ≥ 1",
        "64; 1,024 for `Router`",
        (
            "The calls that one replica works on at a time. Further calls wait until a replica has room or "
            "their request runs out of time."
        ),
    ),
    (
        "`user_config`",
        "a mapping",
        "empty",
        "The settings of this pool that can be changed while it runs; see below.",
    ),
    (
        "`max_surge_percent`",
        "an integer, 0 to 100",
        "0",
        (
            "Replicas that may be started before old ones end, when replicas must be replaced. There must be "
            "room for them: Serve keeps the old replicas until then. With 0 an old replica ends first."
        ),
    ),
    (
        "`rolling_update_percentage`",
        "a number, > 0, ≤ 1",
        "0.2",
        "The share of the replicas that is replaced at a time.",
    ),
    (
        "`graceful_shutdown_timeout_s`",
        "a number, ≥ 0",
        "`router.request_timeout_s`; 20 with `prism serve`",
        "How long a replica that is removed may still work on its requests.",
    ),
    (
        "`graceful_shutdown_wait_loop_s`",
        "a number, ≥ 0",
        "2; 0.25 with `prism serve`",
        "How often such a replica looks whether it is done.",
    ),
    (
        "`health_check_period_s`",
        "a number, > 0",
        "2",
        "The time between two health checks of a replica.",
    ),
    (
        "`health_check_timeout_s`",
        "a number, > 0",
        "30",
        "How long a health check may take.",
    ),
    (
        "`max_replicas_per_node`",
        "an integer, 1 to 100",
        "not set",
        "The most replicas on one node.",
    ),
    (
        "`logging_config`",
        "a mapping",
        "the application's",
        "The log of this pool.",
    ),
)
"""The keys of Serve that an entry below ``deployments:`` may have: key, value, default, meaning."""

DEPLOYMENTS: Final = """\
## Deployments

Each entry of `deployments:` has a `name` and any of these keys. Ray Serve defines them, and
[its documentation](https://docs.ray.io/en/latest/serve/configure-serve-deployment.html) describes them in full. Prism
sets Serve's other keys itself, so they are refused here. `initial_replicas` inside `autoscaling_config` is refused too,
because after an incremental upgrade Serve would never go below it.

| key | value | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """Returns the whole page as Markdown."""
    sections = [_section(path, model) for path, model in _models("", PrismConfig)]
    tuned = [_section(f"deployments: user_config of {name}", model) for name, model in USER_CONFIGS.items()]
    deployments = DEPLOYMENTS + "".join(f"| {' | '.join(row)} |\n" for row in SERVE_KEYS)
    return "\n".join([INTRODUCTION, *sections, deployments, *tuned])


def _models(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields each model of the configuration tree with its path. The root comes first."""
    yield path, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _models(f"{path}.{name}".lstrip("."), field.annotation)


def _section(path: str, model: type[BaseModel]) -> str:
    docs = _field_docs(model)
    lines = [f"## `{path}`" if path else "## Top level", "", inspect.cleandoc(model.__doc__ or "").replace("``", "`")]
    rows = [
        f"| `{name}` | {_kind(field.annotation)}{_bounds(field)} | {_default(field)} | {docs.get(name, '')} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join([*lines, "", "| key | value | default | meaning |", "|---|---|---|---|", *rows, ""])


def _field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Returns the docstrings of a model's fields by name. A field without one takes the docstring of the field that it
    overrides."""
    found: dict[str, str] = {}
    for kind in reversed([kind for kind in model.__mro__ if kind.__module__ == config.__name__]):
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
                found[field.target.id] = text.replace("``", "`").replace("|", "\\|")
    return {**dict.fromkeys(model.model_fields, ""), **found}


def _kind(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section of its own"
    options = [option for option in get_args(annotation) if option is not type(None)]
    if options and all(isinstance(option, str) for option in options):
        return " or ".join(f"`{option}`" for option in options)
    if get_origin(annotation) is frozenset:
        return "a list of strings"
    if options:
        return " or ".join(map(_kind, options))
    names = {str: "a string", int: "an integer", float: "a number", bool: "`true` or `false`"}
    return names[annotation]


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, name):,}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return f", {', '.join(bounds)}" if bounds else ""


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return ""
    if field.default is None:
        return "not set"
    if isinstance(field.default, frozenset):
        return "empty"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, int | float):
        return f"{field.default:,}"
    return f"`{field.default}`"


if __name__ == "__main__":
    PAGE.write_text(page())
