"""Keeps the caches of tenants apart."""

from __future__ import annotations

import hashlib
from typing import Any, Final

FIELD: Final = "cache_salt"


def separate(body: dict[str, Any], tenant: str) -> None:
    """Puts the tenant into a request's ``cache_salt``, so that it shares nothing that is cached with other tenants.

    The digest of each picture, the conversation's name and vLLM's prefix cache all cover ``cache_salt``. A tenant's own
    salts keep their meaning within the tenant. Two tenants with the same salt share nothing.

    Args:
        body: The client's JSON; the field is changed in place. A value that vLLM refuses stays, so that it is refused.
        tenant: The name of the tenant; nothing happens if it is empty.
    """
    own = body.get(FIELD)
    if tenant and (own is None or (isinstance(own, str) and own)):
        # The tenant's name has no NUL, so no other pair gives the same bytes. Without a salt there is no NUL at all.
        both = tenant if own is None else f"{tenant}\0{own}"
        body[FIELD] = hashlib.sha256(b"prism tenant\0" + both.encode("utf-8", "surrogatepass")).hexdigest()
