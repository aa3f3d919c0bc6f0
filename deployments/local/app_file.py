"""Reads application files and checks every key, because Ray silently ignores keys that it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from cluster.config import (
    POOLS,
    USER_CONFIGS,
    EncoderUserConfig,
    Frozen,
    PoolConfig,
    PrismConfig,
    RouterConfig,
    RouterUserConfig,
)
from deployments.local.entries import DEPLOYMENTS, entry_problems, policy_problems
from deployments.local.problems import unknown_key, wrong_values

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

BUILDER: Final = "deployments.app:build"

APPLIED: Final = frozenset({"proxy_location", "http_options", "logging_config", "applications"})
APPLIED_TO_HTTP: Final = frozenset({"host", "port"})
"""The keys of Serve's schema that ``prism serve`` applies. Of the HTTP options it takes none: it listens on loopback
at the port of ``--port``. ``proxy_location`` makes no difference on one node."""

DRAINING: Final = {"graceful_shutdown_timeout_s": 20.0, "graceful_shutdown_wait_loop_s": 0.25}
"""How long a replica that is to end may work on its requests, and how often it looks whether they are done. Both also
bound what Ctrl-C waits for, because Serve ends one pool after the other. Measured (EPYC, two shared cores, 2026-11-30,
idle paced pools, and a Router that drains for 2 s): Ctrl-C ends a cluster in 13.2 s with Serve's default look every
2 s → 8.3 s. Since Routers drain for 5 s it takes 11.0 s."""


class NoUserConfig(Frozen):
    """The schema of ``user_config:`` of a deployment whose settings cannot be changed while it runs."""


class AnyUserConfig(RouterUserConfig, EncoderUserConfig):
    """All keys that ``user_config:`` may have, of whatever deployment."""


LOOSE: dict[tuple[type[BaseModel], str], type[BaseModel]] = {
    (ServeApplicationSchema, "args"): PrismConfig,
    (ServeApplicationSchema, "autoscaling_policy"): AutoscalingPolicy,
    (DeploymentSchema, "user_config"): AnyUserConfig,
}
"""Keys that Ray's schema types as a plain dict, and the schemas that they must satisfy."""


Part = tuple[type[BaseModel], "Mapping[str, Any]", str]
"""A schema, the mapping that it is for, and the path of the mapping with a dot at its end."""


class ApplicationFileError(ValueError):
    """An application file that cannot be used.

    Args:
        problems: A sentence for each thing that is wrong with it.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems: Final = tuple(problems)


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
            ApplicationFileError: The file is no YAML, or ``parse`` refuses it.
        """
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ApplicationFileError([f"the file cannot be read: {error}"]) from None
        except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # the latter of values such as !!int a
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
            where = f" at line {mark.line + 1}" if mark else ""
            raise ApplicationFileError([f"the file is no YAML{where}: {problem}"]) from None
        return cls.parse(path, content)

    @classmethod
    def parse(cls, path: Path, content: object) -> Self:
        """Checks the content of a file for a cluster of this machine alone.

        Raises:
            ApplicationFileError: The content has unknown keys or wrong values, does not hold exactly one application of
                Prism's, or uses a key that only ``serve run`` and KubeRay apply. It says everything that is wrong.
        """
        if not isinstance(content, dict):
            raise ApplicationFileError(["the file must hold a mapping with the key applications"])
        try:
            serve = check_serve_config(content)
        except RecursionError:
            raise ApplicationFileError(["the file holds a mapping that holds itself"]) from None
        if len(serve.applications) != 1:
            raise ApplicationFileError([f"applications: there must be one, not {len(serve.applications)}"])
        [application] = content["applications"]
        if application["import_path"] != BUILDER:
            wanted = f"applications.import_path: it must be {BUILDER}; use serve run for other applications"
            raise ApplicationFileError([wanted])
        parts = (("", content, APPLIED), ("http_options.", content.get("http_options") or {}, APPLIED_TO_HTTP))
        beyond = [path + key for path, part, applied in parts for key in sorted(part.keys() - applied)]
        if beyond:
            raise ApplicationFileError(
                [f"{key}: prism serve does not apply this key; leave it out, or use serve run" for key in beyond]
            )
        return cls(path, serve, PrismConfig.model_validate(application.get("args", {})))

    def num_replicas(self) -> dict[str, int]:
        """The number of replicas that each deployment starts with, by its name."""
        found = dict.fromkeys(DEPLOYMENTS, 1)
        for deployment in self.serve.applications[0].model_dump(exclude_unset=True).get("deployments", []):
            bounds = deployment.get("autoscaling_config") or {}
            fixed = deployment.get("num_replicas")
            found[deployment["name"]] = fixed if isinstance(fixed, int) else bounds.get("min_replicas", 1)
        return found

    @property
    def keys_file(self) -> str | None:
        """The path of the file of API keys in the Router's ``user_config``."""
        for deployment in self.serve.applications[0].model_dump(exclude_unset=True).get("deployments", []):
            if deployment["name"] == RouterConfig.deployment:
                found: str | None = (deployment.get("user_config") or {}).get("keys_file")
                return found
        return None

    def for_one_machine(self) -> ServeDeploySchema:
        """Returns the file as ``prism serve`` gives it to Serve, for a cluster of this machine alone.

        It makes no choice of nodes by labels, because there is only one node. Replicas drain as ``DRAINING`` says,
        unless the file says something else.
        """
        content = self.serve.model_dump(exclude_unset=True)
        [application] = content["applications"]
        for pool in POOLS:
            resources = application.get("args", {}).get(pool, {}).get("resources", {})
            for key in ("pool_label", "pool_label_required"):
                resources.pop(key, None)
        said = {deployment["name"]: deployment for deployment in application.get("deployments", [])}
        application["deployments"] = [{**DRAINING, **said.get(name, {"name": name})} for name in DEPLOYMENTS]
        return ServeDeploySchema.model_validate(content)


def check_serve_config(config: Mapping[str, Any]) -> ServeDeploySchema:
    """Checks a whole file.

    Returns:
        The configuration as Ray reads it.

    Raises:
        ApplicationFileError: A key is in none of the schemas, or a value does not satisfy its schema.
    """
    parts, known = list(_parts(ServeDeploySchema, config, "")), _keys(ServeDeploySchema, "")
    problems = [
        _misplaced(key, schema, path) or unknown_key(key, path, schema.model_fields, known)
        for schema, part, path in parts
        for key in part
        if key not in schema.model_fields
    ]
    for schema, part, _ in parts:
        if schema is ServeApplicationSchema:
            problems += entry_problems(part["deployments"]) if "deployments" in part else ()
            problems += policy_problems(part) if isinstance(part.get("deployments", []), list) else ()
            prefix = part.get("route_prefix", "/")
            if isinstance(prefix, str) and not prefix.startswith("/"):
                problems.append('applications.route_prefix: it must begin with "/"')
    if problems:
        raise ApplicationFileError(problems)
    stumbles: dict[str, str] = {}
    for schema, part, path in parts:
        try:
            schema.model_validate(part)
        except ValidationError as error:
            problems += wrong_values(error, part, path)
        except Exception as error:  # noqa: BLE001 -- Ray's own checks stumble over values, and import policies
            stumbles[str(error)] = path.removesuffix(".") or "the file"  # the innermost mapping that has it
    problems += [f"{path}: {error}" for error, path in stumbles.items()]
    if problems:
        raise ApplicationFileError(list(dict.fromkeys(problems)))  # a mapping's errors are also its parent's
    return ServeDeploySchema.model_validate(config)


def _misplaced(key: object, schema: type[BaseModel], path: str) -> str | None:
    """A sentence about a key that stood at this place once; None for any other key."""
    place = schema.new_place(str(key)) if issubclass(schema, PoolConfig) else None
    return place and f"{path}{key}: {place}"


def _keys(schema: type[BaseModel], path: str) -> dict[str, Collection[str]]:
    """The keys of every mapping that a file may have, by the path of the mapping with a dot at its end."""
    found: dict[str, Collection[str]] = {path: schema.model_fields.keys()}
    for key, field in schema.model_fields.items():
        if inner := LOOSE.get((schema, key)) or _model_in(field.annotation):
            found |= _keys(inner, f"{path}{key}.")
    return found


def _parts(schema: type[BaseModel], config: Mapping[str, Any], path: str) -> Iterator[Part]:
    """Every mapping of a configuration for which there is a schema; the configuration itself comes first."""
    yield schema, config, path
    for key in config.keys() & schema.model_fields.keys():
        inner = LOOSE.get((schema, key)) or _model_in(schema.model_fields[key].annotation)
        if inner is AnyUserConfig:
            inner = USER_CONFIGS.get(str(config.get("name")), NoUserConfig)
        values = config[key] if isinstance(config[key], list) else [config[key]]
        for value in values:
            if inner is not None and isinstance(value, dict):
                yield from _parts(inner, value, f"{path}{key}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as ``Optional[list[Union[dict, Model]]]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in get_args(annotation) if (model := _model_in(argument))), None)
