"""The rules of the house that no linter knows: names, maps of packages, and what is used of Ray's private parts."""

from __future__ import annotations

import ast
import mmap
import re
from collections import defaultdict
from inspect import getsource
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import ray
from ray import serve
from ray.actor import ActorClass
from ray.experimental import internal_kv
from ray.serve import handle, request_router
from ray.serve._private import client, replica, router
from ray.serve._private.handle_options import DynamicHandleOptionsBase
from ray.serve._private.request_router import replica_wrapper

from deployments.ray_serve import haproxy
from loadtest.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PRODUCT: Final = ("cluster", "deployments", "loadtest")
PACKAGES: Final = sorted(path.parent for top in PRODUCT for path in (ROOT / top).rglob("__init__.py"))
SOURCES: Final = sorted(path for top in PRODUCT for path in (ROOT / top).rglob("*.py"))
RAY_ROOM: Final = ROOT / "deployments" / "ray_serve"
MAX_MODULE_LINES: Final = 400

PRIVATE_SYMBOLS: Final = {
    "_actor_handle": getsource(replica_wrapper),
    "_asyncio_router": getsource(router),
    "_by_reference": getsource(DynamicHandleOptionsBase) + getsource(handle),
    "_controller": getsource(client),
    "_choose_replica_for_request": getsource(request_router.RequestRouter),
    "_get_global_client": getsource(serve.context),
    "_init": getsource(handle),
    "_node_ip_address": getsource(ray.init),
    "_internal_kv_get": getsource(internal_kv),
    "_internal_kv_put": getsource(internal_kv),
    "_request_router": getsource(router),
    "_router": getsource(handle),
    "_temp_dir": getsource(ray.init),
    "__ray_call__": getsource(ActorClass) + Path(ray.actor.__file__).read_text(),
    "__serve_build_asgi_app__": getsource(replica) + getsource(serve.ingress),
}
"""Every private name of Ray's that Prism uses, with the source that must define it. Serve has no public way for any."""

LESS_PUBLIC_SYMBOLS: Final = {
    "curr_replicas": getsource(request_router.RequestRouter),
    "get_serve_instance_details": getsource(client),
    "http_config": getsource(client),
    "internal_request_id": getsource(router),
    "is_initialized": getsource(handle),
    "list_serve_statuses": getsource(client),
    "running_replicas_populated": getsource(handle),
    "select_available_replicas": getsource(request_router.RequestRouter),
}
"""Names without an underscore that Serve does not document."""


def private_uses(path: Path) -> Iterator[str]:
    """Returns the private names of other modules that a module uses, as attributes, arguments, methods or imports."""
    tree = ast.parse(path.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr.startswith("_") and not is_own and node.attr not in DUNDERS:
                yield node.attr
        elif isinstance(node, ast.keyword) and (node.arg or "").startswith("_"):
            yield str(node.arg)
        elif isinstance(node, ast.ImportFrom) and "._private" in (node.module or ""):
            yield str(node.module)
    yield from own & PRIVATE_SYMBOLS.keys() & {"__serve_build_asgi_app__", "_choose_replica_for_request"}


DUNDERS: Final = {"__init__", "__name__", "__module__", "__class__", "__dict__", "__doc__", "__subclasses__", "__mro__"}


def test_public_class_names_are_unique() -> None:
    """Each public class name stands for one class in the whole product."""
    places = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_maps_its_modules(package: Path) -> None:
    """A package's docstring names each of its modules and packages, and nothing that is not there."""
    doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    named = set(re.findall(r"(?<![\w./])(\w+\.py|\w+/)(?![\w/])", doc))
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert (modules | packages) - named == set()
    assert {name for name in named if name.endswith(".py")} - modules == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_begins_with_a_sentence_and_stays_readable(path: Path) -> None:
    """A module's docstring begins with one sentence on its first line, and no module has more than 400 lines."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.match(r"[A-Z``].*[.:]$", doc.splitlines()[0] if doc else "")
    assert len(path.read_text().splitlines()) <= MAX_MODULE_LINES


def test_rays_private_parts_are_met_in_one_room() -> None:
    """Only deployments/ray_serve uses private parts of Ray, and only those that are listed here."""
    outside = [path for path in (ROOT / "deployments").rglob("*.py") if RAY_ROOM not in path.parents]
    assert {str(path): [*private_uses(path)] for path in outside if [*private_uses(path)]} == {}
    assert {name for path in RAY_ROOM.glob("*.py") for name in private_uses(path)} == PRIVATE_SYMBOLS.keys()


@pytest.mark.parametrize("symbol", [*PRIVATE_SYMBOLS, *LESS_PUBLIC_SYMBOLS])
def test_what_is_used_of_rays_private_parts_is_there(symbol: str) -> None:
    """Each listed symbol exists in the installed Ray's source, so that an upgrade that drops one fails here first."""
    source = {**PRIVATE_SYMBOLS, **LESS_PUBLIC_SYMBOLS}[symbol]
    assert re.search(rf"(?<!\w){symbol}(?!\w)", source)


@pytest.mark.parametrize("variable", sorted(haproxy.environment(Path("/folder"), max_stream_s=1, fallback_port=1)))
def test_the_installed_ray_reads_the_variables_that_are_set(variable: str) -> None:
    """The installed Ray reads each environment variable that Prism sets for Serve, in Python or in its core."""
    package = Path(ray.__file__).parent
    if variable.startswith("RAY_SERVE_"):
        folder = package / "serve" / "_private"
        assert any(variable in path.read_text() for path in folder.rglob("*.py"))
        return
    with (
        (package / "_raylet.so").open("rb") as library,
        mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ) as core,
    ):
        assert core.find(variable.removeprefix("RAY_").encode()) >= 0
