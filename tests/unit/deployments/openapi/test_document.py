"""The OpenAPI document is valid, and says what the code does."""

from __future__ import annotations

import ast
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import httpx
import jsonschema  # type: ignore[import-untyped]  # publishes no types
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from cluster.access.control import AccessControl
from cluster.admission.slots import Admission
from cluster.config import MediaConfig, ModelConfig, PrismConfig, RouterUserConfig
from cluster.errors import MethodNotAllowed, PrismError, RouteNotFound
from cluster.request import OPERATOR_FIELDS
from cluster.tracing import Tracing
from deployments.api import build_api
from deployments.openapi.answers import error_leaves
from deployments.openapi.bodies import MAX_ANSWERS
from deployments.openapi.document import NOT_OF_ANSWERS, openapi_document, openapi_json
from loadtest.servers import ROOT

CONFIG = PrismConfig(model=ModelConfig(served_name="a-model"), media=MediaConfig(max_pictures=7))
DOCUMENT = openapi_document(CONFIG)
METHODS = {"get", "post"}


def api() -> Any:
    """Returns the HTTP application of a Router that is never asked to serve."""
    admission = Admission(8, 2**20)
    router = SimpleNamespace(
        config=CONFIG,
        limits=RouterUserConfig(),
        admission=admission,
        access=AccessControl.without_keys(),
        tracing=Tracing(None),
    )
    return build_api(cast(Any, router))


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    """Returns path, method and description of every operation."""
    return [
        (path, method, operation)
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def test_the_document_is_valid() -> None:
    """The document is a valid OpenAPI 3.1 document."""
    assert list(OpenAPIV31SpecValidator(cast(Any, DOCUMENT)).iter_errors()) == []


async def test_the_router_serves_the_document() -> None:
    """``GET /openapi.json`` answers the document."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api()), base_url="http://prism") as client:
        response = await client.get("/openapi.json")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.content == openapi_json(CONFIG)
    assert response.json() == DOCUMENT


def test_every_route_is_documented_with_its_methods() -> None:
    """The document has exactly the routes and methods of the HTTP application."""
    served = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in api().routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(path, method) for path, method, _ in operations()} == served


@pytest.mark.parametrize("kind", error_leaves(), ids=lambda kind: kind.__name__)
def test_every_error_is_documented(kind: type[PrismError]) -> None:
    """Each leaf of the error tree stands below its status in some operation, unless it is about no operation at all."""
    described = [
        response["description"]
        for _, _, operation in operations()
        for status, response in operation["responses"].items()
        if status == str(kind.status)
    ]
    is_documented = any(f"`{kind.code}`" in description for description in described)
    assert is_documented or kind in (RouteNotFound, MethodNotAllowed)


def test_an_error_has_the_documented_shape() -> None:
    """What an error sends is valid by the schema of its response."""
    responses = DOCUMENT["paths"]["/v1/chat/completions"]["post"]["responses"]
    for kind in set(error_leaves()) - set(NOT_OF_ANSWERS):
        schema = {
            **responses[str(kind.status)]["content"]["application/json"]["schema"],
            "components": DOCUMENT["components"],
        }
        jsonschema.validate(kind("A sentence.", param="model").to_openai("an-id"), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(
                {"error": {"message": "A sentence.", "type": "none", "param": None, "code": "x"}}, schema
            )


def test_the_configuration_shows() -> None:
    """The served name and the limit on pictures are those of the configuration."""
    chat = DOCUMENT["components"]["schemas"]["ChatBody"]["properties"]
    assert "a-model" in chat["model"]["enum"]
    assert "at most 7 pictures" in chat["messages"]["description"]


@pytest.mark.parametrize("name", [*OPERATOR_FIELDS, "prompt_embeds"])
def test_refused_fields_are_refused_by_the_schema(name: str) -> None:
    """A field that clients may not send makes a body invalid."""
    body = {"messages": [{"role": "user", "content": "hello"}]}
    schema = {**DOCUMENT["components"]["schemas"]["ChatBody"], "components": DOCUMENT["components"]}
    jsonschema.validate(body, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**body, name: "x"}, schema)


def test_the_limit_on_answers_is_the_decoders() -> None:
    """The document states the limit on ``n`` that the decode stage has."""
    tree = ast.parse((ROOT / "cluster/decode/bounds.py").read_text())
    values = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "MAX_ANSWERS"
        and isinstance(node.value, ast.Constant)
    ]
    assert values == [MAX_ANSWERS]


def test_the_document_needs_no_vllm() -> None:
    """To make the document imports neither vLLM nor torch, which the Router's process does not hold."""
    program = "import sys, deployments.openapi.document; print({'vllm', 'torch'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "set()"
