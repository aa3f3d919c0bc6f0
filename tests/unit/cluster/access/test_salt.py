"""The caches of tenants are apart."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from cluster.access.salt import separate
from cluster.messages import cache_salt


def salted(tenant: str, *own: Any) -> dict[str, Any]:
    """Returns a body of a tenant, with a salt of its own if one is given."""
    body = {"cache_salt": own[0]} if own else {}
    separate(body, tenant)
    return body


def test_no_two_tenants_share_and_a_tenants_salts_keep_their_meaning() -> None:
    """Each pair of a tenant and a salt is a salt of its own. It is the same each time, and vLLM takes it."""
    pairs = [(tenant, *own) for tenant in ("a", "b", "ab") for own in ((), ("x",), ("b",), ("bx",), ("\ud800",))]
    salts = [cache_salt(salted(*pair)) for pair in pairs]
    assert all(one != other for one, other in itertools.combinations(salts, 2))
    assert salts == [cache_salt(salted(*pair)) for pair in pairs]
    assert all(re.fullmatch(rb"[0-9a-f]{64}", salt) for salt in salts)
    assert salted("a", None) == salted("a")


def test_a_client_cannot_name_another_tenants_salt() -> None:
    """A salt that is copied from another tenant's request is salted again."""
    theirs = salted("a", "x")["cache_salt"]
    assert salted("b", theirs)["cache_salt"] != theirs


@pytest.mark.parametrize("own", [(), ("x",), (None,), (5,)])
def test_without_a_tenant_nothing_changes(own: tuple[Any, ...]) -> None:
    """Without keys a request stays as it is."""
    assert salted("", *own) == ({"cache_salt": own[0]} if own else {})


@pytest.mark.parametrize("own", ["", 5, ["x"], {}, False])
def test_salts_that_vllm_refuses_stay(own: Any) -> None:
    """A value that is no salt reaches vLLM unchanged, which refuses it."""
    assert salted("a", own) == {"cache_salt": own}
