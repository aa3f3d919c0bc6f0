"""The error tree."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import httpx2
import pytest
from openai import OpenAI

from cluster import errors
from cluster.errors import PrismError

if TYPE_CHECKING:
    from collections.abc import Iterator


def leaves(kind: type[PrismError] = PrismError) -> Iterator[type[PrismError]]:
    """Yields every subclass of ``kind`` that has no subclass itself."""
    children = kind.__subclasses__()
    for child in children:
        yield from leaves(child)
    if not children:
        yield kind


@pytest.mark.parametrize("kind", list(leaves()), ids=lambda kind: kind.__name__)
def test_every_error_crosses_processes_whole(kind: type[PrismError]) -> None:
    """An error keeps its message, parameter, status and body when it is pickled."""
    error = kind("What is wrong; what would be right.", param="messages[0]")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.to_openai(), copy.status, str(copy)) == (error.to_openai(), error.status, str(error))


def test_figures_and_status_are_kept() -> None:
    """An error's figures are in its response body, and a status that comes from vLLM is kept."""
    error = errors.TooManyPictures("Too many.", param="messages", asked=9, limit=8)
    assert pickle.loads(pickle.dumps(error)).to_openai()["error"]["figures"] == {"asked": 9, "limit": 8}
    assert pickle.loads(pickle.dumps(errors.EngineRefused("No.", status=422))).status == 422


def test_codes_are_unique_and_statuses_are_errors() -> None:
    """No two errors share a code, except those that wrap vLLM's messages, and every status is a 4xx or 5xx."""
    kinds = [kind for kind in leaves() if kind is not errors.EngineRefused]
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(400 <= kind.status < 600 for kind in leaves())


@pytest.mark.parametrize("kind", list(leaves()), ids=lambda kind: kind.__name__)
def test_every_leaf_says_whether_a_retry_can_help(kind: type[PrismError]) -> None:
    """Every leaf of the error tree sets ``can_retry`` itself, and the drawn tree marks the errors where it is true."""
    assert isinstance(vars(kind)["can_retry"], bool)
    [line] = [line for line in (errors.__doc__ or "").splitlines() if f"── {kind.__name__} " in line]
    assert ("a retry can help" in line) is kind.can_retry


@pytest.mark.parametrize("kind", [kind for kind in leaves() if kind.can_retry], ids=lambda kind: kind.__name__)
def test_openais_sdk_tries_again_where_it_can_help(kind: type[PrismError]) -> None:
    """OpenAI's own client sends a request again by itself if its error says that a retry can help."""
    client = OpenAI(api_key="none", base_url="http://prism/v1")
    assert client._should_retry(httpx2.Response(kind.status, headers={"retry-after": "1"}))


def test_a_clients_mistake_hangs_under_the_clients_branch() -> None:
    """Errors of the client's branch have a 4xx status other than 429, and all other errors have another status."""
    for kind in leaves():
        assert issubclass(kind, errors.InvalidRequest) is (kind.status < 500 and kind.status != 429)


def test_the_drawn_tree_is_the_real_one() -> None:
    """The tree in the module's docstring lists exactly the existing errors with their statuses."""
    branches = [line.partition("── ")[2].split() for line in (errors.__doc__ or "").splitlines() if "── " in line]
    drawn = {name: status for name, status, *_ in branches}
    real = {kind.__name__ for kind in leaves()} | {"InvalidRequest", "ServingError"}
    assert set(drawn) == real
    for kind in leaves():
        if kind is not errors.EngineRefused:
            assert str(kind.status) == drawn[kind.__name__]


def test_an_error_can_be_about_another_field() -> None:
    """A copy of an error can name another request's field. An error that is about no field stays so."""
    error = errors.TooManyPictures("Too many.", param="messages", asked=9, limit=8)
    twin = error.at("prompt")
    assert (type(twin), twin.param, twin.message, twin.figures) == (type(error), "prompt", error.message, error.figures)
    assert error.param == "messages"
    assert errors.PoolUnavailable("Gone.").at("prompt").param is None
