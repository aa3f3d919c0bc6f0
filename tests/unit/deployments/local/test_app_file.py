"""Application files as ``prism serve`` reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deployments.local.app_file import ApplicationFile
from loadtest.servers import APP

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, top: dict[str, Any], application: dict[str, Any]) -> Path:
    """Writes the embedded default with some keys changed and returns its path."""
    content = yaml.safe_load(APP.read_text()) | top
    content["applications"][0] |= application
    path = folder / "app.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("top", "application", "named"),
    [
        ({"aplications": []}, {}, "aplications"),
        ({}, {"nmae": "prism"}, "applications.nmae"),
        ({}, {"args": {"modle": {}}}, "applications.args.modle"),
        ({"grpc_options": {"port": 9000}}, {}, "grpc_options"),
        ({"http_options": {"port": 8000, "root_path": "/a"}}, {}, "http_options.root_path"),
        ({}, {"deployments": [{"name": "Decoder", "num_replicas": 2}]}, "applications.deployments"),
        ({}, {"runtime_env": {"env_vars": {"A": "b"}}}, "applications.runtime_env"),
        ({}, {"import_path": "other:build"}, "deployments.app:build"),
    ],
)
def test_what_would_not_be_applied_is_refused(
    top: dict[str, Any], application: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """A key that is unknown, or that only ``serve run`` applies, is refused by name and never ignored."""
    with pytest.raises(ValueError, match=named):
        ApplicationFile.read(written(tmp_path, top, application))


def test_the_embedded_default_is_read(tmp_path: Path) -> None:
    """The embedded default is accepted without changes."""
    assert ApplicationFile.read(written(tmp_path, {}, {})).config.model.checkpoint == "demo"


@pytest.mark.parametrize("content", ["", "[]", "applications: []"])
def test_a_file_without_an_application_is_refused(content: str, tmp_path: Path) -> None:
    """A file that is not a mapping with exactly one application is refused."""
    path = tmp_path / "app.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"applications|one application"):
        ApplicationFile.read(path)
