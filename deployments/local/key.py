"""The command ``prism key`` makes an API key. The other commands send the key of the environment variable."""

from __future__ import annotations

import datetime
import os
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml
from pydantic import ValidationError

from cluster.access.keys import MAX_LIMIT, KeyEntry, hash_of, new_key

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE: Final = "PRISM_API_KEY"
"""The environment variable with the key of ``prism ask``, ``status`` and ``measure``. There is no option for it: every
process of a machine can read the command lines of all others."""

Count = Annotated[int | None, typer.Option(min=1, max=MAX_LIMIT)]


def key(
    tenant: Annotated[str, typer.Option(help="The name of the tenant, for logs, metrics and separate caches.")],
    model: Annotated[list[str] | None, typer.Option(help="A model that it may use; give it again for others.")] = None,
    requests_per_minute: Count = None,
    picture_tokens_per_minute: Count = None,
    max_concurrent: Count = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher ones go first where requests wait.")] = 0,
    operator: Annotated[bool, typer.Option(help="Lets it read /status and /metrics.")] = False,
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="The days until it expires.")] = None,
) -> None:
    """Makes an API key: prints its entry for the keys file, and the key itself once, on the standard error."""
    expires = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days) if days else None
    fields: dict[str, Any] = {
        "tenant": tenant,
        "models": model or None,
        "requests_per_minute": requests_per_minute,
        "picture_tokens_per_minute": picture_tokens_per_minute,
        "max_concurrent": max_concurrent,
        "priority": priority or None,
        "operator": operator or None,
        "expires": expires,
    }
    secret = new_key()
    entry = {name: value for name, value in fields.items() if value is not None} | {"sha256": hash_of(secret.encode())}
    try:
        KeyEntry.model_validate(entry)
    except ValidationError:
        typer.echo(
            "--tenant takes up to 64 of the characters A-Z a-z 0-9 _ . - and begins with one of the first three.",
            err=True,
        )
        raise typer.Exit(2) from None
    typer.echo(yaml.safe_dump([entry], sort_keys=False), nl=False)
    typer.echo(f"The key, which is shown only once: {secret}", err=True)


def key_header() -> Mapping[str, str]:
    """The header with the key of the environment variable ``PRISM_API_KEY``; none if it is not set."""
    secret = os.environ.get(VARIABLE)
    return {"authorization": f"Bearer {secret}"} if secret else {}
