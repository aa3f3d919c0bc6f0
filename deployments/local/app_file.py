"""Reads application files and checks every key, because Ray silently ignores keys that it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, get_args

import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from cluster.config import PrismConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BUILDER: Final = "deployments.app:build"

APPLIED: Final = frozenset({"proxy_location", "http_options", "logging_config", "applications"})
APPLIED_TO_HTTP: Final = frozenset({"host", "port"})
APPLIED_TO_APPLICATION: Final = frozenset({"name", "route_prefix", "import_path", "args"})
"""The keys of Serve's schema that ``prism serve`` applies. Of the HTTP options it takes none: it listens on loopback
at the port of ``--port``. ``proxy_location`` makes no difference on one node."""

LOOSE: dict[tuple[type[BaseModel], str], type[BaseModel]] = {
    (ServeApplicationSchema, "args"): PrismConfig,
    (ServeApplicationSchema, "autoscaling_policy"): AutoscalingPolicy,
}
"""Keys that Ray's schema types as a plain dict, and the schemas that they must satisfy."""


Part = tuple[type[BaseModel], "Mapping[str, Any]", str]
"""A schema, the mapping that it is for, and the path of the mapping with a dot at its end."""


class UnknownKeyError(ValueError):
    """A key is in none of the schemas."""


@dataclass(frozen=True, slots=True)
class ApplicationFile:
    """An application file that has been read and checked: Serve's part and Prism's part."""

    path: Path
    serve: ServeDeploySchema
    config: PrismConfig

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads and checks a file for a cluster of this machine alone.

        Raises:
            UnknownKeyError: A key is in none of the schemas; the message gives its path.
            ValidationError: A value is wrong; the message names it.
            ValueError: The file does not hold exactly one application of Prism's, or uses a key that only ``serve run``
                and KubeRay apply.
        """
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it must hold a mapping with the key applications")
        serve = check_serve_config(content)
        if len(serve.applications) != 1:
            raise ValueError(f"it must hold one application, it holds {len(serve.applications)}")
        [application] = content["applications"]
        if application["import_path"] != BUILDER:
            raise ValueError(f"applications.import_path must be {BUILDER}; use serve run for other applications")
        parts = (
            ("", content, APPLIED),
            ("http_options.", content.get("http_options") or {}, APPLIED_TO_HTTP),
            ("applications.", application, APPLIED_TO_APPLICATION),
        )
        beyond = [path + key for path, part, applied in parts for key in sorted(part.keys() - applied)]
        if beyond:
            raise ValueError(f"prism serve does not apply {', '.join(beyond)}; leave it out, or use serve run")
        return cls(path, serve, PrismConfig.model_validate(application.get("args", {})))


def check_serve_config(config: Mapping[str, Any]) -> ServeDeploySchema:
    """Checks a whole file.

    Returns:
        The configuration as Ray reads it.

    Raises:
        UnknownKeyError: A key is in none of the schemas; the message gives its path.
        ValidationError: A value does not satisfy its schema.
    """
    parts = list(_parts(ServeDeploySchema, config, ""))
    unknown = [path + key for schema, part, path in parts for key in part if key not in schema.model_fields]
    if unknown:
        raise UnknownKeyError(f"no schema knows {', '.join(unknown)}")
    for schema, part, _ in parts:
        schema.model_validate(part)
    return ServeDeploySchema.model_validate(config)


def _parts(schema: type[BaseModel], config: Mapping[str, Any], path: str) -> Iterator[Part]:
    """Every mapping of a configuration for which there is a schema; the configuration itself comes first."""
    yield schema, config, path
    for key in config.keys() & schema.model_fields.keys():
        inner = LOOSE.get((schema, key)) or _model_in(schema.model_fields[key].annotation)
        values = config[key] if isinstance(config[key], list) else [config[key]]
        for value in values:
            if inner is not None and isinstance(value, dict):
                yield from _parts(inner, value, f"{path}{key}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as ``Optional[list[Union[dict, Model]]]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in get_args(annotation) if (model := _model_in(argument))), None)
