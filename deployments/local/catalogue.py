"""Reads the catalogue of GPUs for ``prism plan``, and says in plain words what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError

from cluster.scaling.planning.catalogue import Catalogue, EfficiencyShares, GpuKind, ModelFigures
from deployments.local.problems import unknown_key, wrong_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cluster.config import Frozen

SHIPPED_CATALOGUE: Final = Path(__file__).with_name("gpus.yaml")


class CatalogueError(ValueError):
    """A catalogue that cannot be used.

    Args:
        problems: A sentence for each thing that is wrong.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read_catalogue(path: Path) -> Catalogue:
    """Reads a catalogue.

    Raises:
        CatalogueError: The file cannot be read, is no YAML, or has unknown keys or wrong values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError([f"it cannot be read: {error}"]) from None
    except yaml.YAMLError as error:
        raise CatalogueError([f"it is no YAML: {error}"]) from None
    if not isinstance(content, dict):
        raise CatalogueError(["it must be a mapping with the keys model, efficiency and gpus"])
    problems = [*_unknown_keys(content)]
    if not problems:  # they are errors of pydantic's too, in its own words
        try:
            return Catalogue.model_validate(content)
        except ValidationError as error:
            problems = wrong_values(error, content, "")
    raise CatalogueError(problems)


def _unknown_keys(content: Mapping[str, Any]) -> Iterator[str]:
    gpus = content.get("gpus")
    parts: list[tuple[str, type[Frozen], Any]] = [
        ("", Catalogue, content),
        ("model.", ModelFigures, content.get("model")),
        ("efficiency.", EfficiencyShares, content.get("efficiency")),
        *((f"gpus.{name}.", GpuKind, gpu) for name, gpu in (gpus.items() if isinstance(gpus, dict) else ())),
    ]
    elsewhere = {path: schema.model_fields.keys() for path, schema, _ in parts}
    for path, schema, part in parts:
        if isinstance(part, dict):
            for key in part.keys() - schema.model_fields.keys():
                yield unknown_key(key, path, schema.model_fields.keys(), elsewhere)
