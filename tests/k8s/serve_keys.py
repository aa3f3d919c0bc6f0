"""Checks a Serve configuration key by key: Ray itself accepts, and ignores, a key that it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from cluster.config import PrismConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LOOSE: dict[tuple[type[BaseModel], str], type[BaseModel]] = {
    (ServeApplicationSchema, "args"): PrismConfig,
    (ServeApplicationSchema, "autoscaling_policy"): AutoscalingPolicy,
}
"""Keys that Ray's schema types as a plain dict, and what they must satisfy all the same."""


Part = tuple[type[BaseModel], "Mapping[str, Any]", str]
"""A schema, the mapping that it is for, and the path to it with a dot at its end."""


class UnknownKeyError(ValueError):
    """A key that no schema names."""


def check_serve_config(config: Mapping[str, Any]) -> ServeDeploySchema:
    """The configuration as Ray reads it.

    Raises:
        UnknownKeyError: A key is in none of the schemas; the message gives its path.
        ValidationError: A value is not what its schema wants.
    """
    parts = list(_parts(ServeDeploySchema, config, ""))
    unknown = [path + key for schema, part, path in parts for key in part if key not in schema.model_fields]
    if unknown:
        raise UnknownKeyError(f"no schema knows {', '.join(unknown)}")
    for schema, part, _ in parts:
        schema.model_validate(part)
    return ServeDeploySchema.model_validate(config)


def _parts(schema: type[BaseModel], config: Mapping[str, Any], path: str) -> Iterator[Part]:
    """Every mapping inside a configuration for which there is a schema, itself first."""
    yield schema, config, path
    for key in config.keys() & schema.model_fields.keys():
        inner = LOOSE.get((schema, key)) or _model_in(schema.model_fields[key].annotation)
        values = config[key] if isinstance(config[key], list) else [config[key]]
        for value in values:
            if inner is not None and isinstance(value, dict):
                yield from _parts(inner, value, f"{path}{key}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as ``Optional[list[Union[dict, Model]]]`` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in get_args(annotation) if (model := _model_in(argument))), None)
