"""The overlays build, from one application file, and their sources say nothing twice."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.helpers.k8s.manifests import K8S, ROOT, DuplicateKeyError, build, pod_templates, read_documents
from tests.k8s.conftest import APPLICATIONS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.k8s.manifests import Object

SOURCES = sorted([*K8S.rglob("*.yaml"), *(ROOT / "deployments").glob("*.yaml")])


def test_every_overlay_is_known_here() -> None:
    """Each overlay in k8s/overlays is in the list that the tests go through."""
    assert {path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml")} == set(APPLICATIONS)


def test_an_overlay_applies_one_rayservice_and_nothing_unchecked(objects: list[Object]) -> None:
    """An overlay applies one RayService and no kind that the tests do not check. The ConfigMap with the application
    file is not applied."""
    assert [(candidate["apiVersion"], candidate["kind"]) for candidate in objects] == [("ray.io/v1", "RayService")]


def test_the_application_file_arrives_unchanged(rayservice: Object, application_text: str) -> None:
    """The RayService holds the same text that ``serve run`` reads."""
    assert rayservice["spec"]["serveConfigV2"] == application_text


def test_the_image_is_this_version(overlay: str, rayservice: Object) -> None:
    """Every pod of an overlay runs the image whose tag is the version in pyproject.toml and the overlay's name."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {template["spec"]["containers"][0]["image"] for template in pod_templates(rayservice).values()}
    assert images == {f"prism:{version}-{overlay}"}


def test_sizes_cannot_land_on_another_group(tmp_path: Path, overlay: str) -> None:
    """An overlay addresses groups by their position, so its build fails once the groups change places."""
    for source in ("k8s", "deployments"):
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    base = tmp_path / "k8s" / "base" / "rayservice.yaml"
    swapped = base.read_text().replace("router", "other").replace("encoder", "router").replace("other", "encoder")
    base.write_text(swapped)
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        build(tmp_path / "k8s" / "overlays" / overlay)
    assert "testing value /spec/rayClusterConfig/workerGroupSpecs/0/groupName failed" in refusal.value.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_yaml_names_a_key_twice(source: Path) -> None:
    """No YAML source contains a key twice in the same mapping."""
    assert read_documents(source.read_text())


def test_a_duplicate_key_is_noticed() -> None:
    """The YAML reader of the tests refuses a duplicate key at any depth."""
    with pytest.raises(DuplicateKeyError, match="'cpu' stands twice"):
        read_documents("a: [{limits: {cpu: 1, memory: 1Gi, cpu: 2}}]")
