"""The built overlays, and the CRD to hold them against."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.helpers.k8s.crd_schema import strict_schema
from tests.helpers.k8s.manifests import K8S, ROOT, build, read_document, read_documents

if TYPE_CHECKING:
    from tests.helpers.k8s.manifests import Object

CRDS = ROOT / "tests" / "k8s" / "crds"
APPLICATIONS = {"cpu": "app.yaml"}
"""Which application file each overlay runs."""


@pytest.fixture(params=sorted(APPLICATIONS))
def overlay(request: pytest.FixtureRequest) -> str:
    """The names of the overlays, one test run for each."""
    return str(request.param)


@pytest.fixture
def application_text(overlay: str) -> str:
    """The text of the Serve application file of the Kustomize overlay under test."""
    return (ROOT / "deployments" / APPLICATIONS[overlay]).read_text()


@pytest.fixture
def application(application_text: str) -> Object:
    """The parsed Serve application file of the Kustomize overlay under test."""
    document: Object = read_document(application_text)
    return document


@pytest.fixture
def objects(overlay: str) -> list[Object]:
    """The objects that ``kubectl apply`` would send for the overlay."""
    return read_documents(build(K8S / "overlays" / overlay))


@pytest.fixture
def rayservice(objects: list[Object]) -> Object:
    """A copy of the overlay's RayService. A test may change it."""
    [service] = [candidate for candidate in objects if candidate["kind"] == "RayService"]
    return service


@pytest.fixture(scope="session")
def rayservice_schema() -> dict[str, Any]:
    """The closed schema of RayService, from the CRD of KubeRay 1.7.0."""
    with gzip.open(CRDS / "ray.io_rayservices.yaml.gz") as file:
        return strict_schema(yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), "v1")
