"""The command that makes keys, and the key that commands send."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from cluster.access.keys import KeyRing, parse_entries
from deployments.local.cli import app
from deployments.local.key import key_header

OPTIONS = [
    "--requests-per-minute=60",
    "--picture-tokens-per-minute=9",
    "--max-concurrent=2",
    "--priority=3",
    "--days=9",
]


def test_the_printed_entry_belongs_to_the_printed_key() -> None:
    """The output is the text of a file of keys. The key, which the other stream has, finds its entry there."""
    made = [
        CliRunner().invoke(app, ["key", "--tenant=a", "--model=m", "--model=n", "--operator", *OPTIONS]),
        CliRunner().invoke(app, ["key", "--tenant=b"]),
    ]
    assert [one.exit_code for one in made] == [0, 0]
    entries = parse_entries("".join(one.stdout for one in made).encode())
    secrets = [re.findall(r"prism-\S+", one.stderr)[0] for one in made]
    assert [KeyRing(entries).find(secret.encode()) for secret in secrets] == entries
    full, plain = entries
    assert full.models == frozenset({"m", "n"})
    assert (full.requests_per_minute, full.picture_tokens_per_minute, full.max_concurrent) == (60, 9, 2)
    assert (full.priority, full.operator) == (3, True)
    assert full.expires is not None
    assert plain.model_dump(exclude={"sha256"}, exclude_defaults=True) == {"tenant": "b"}
    assert not any(secret in one.stdout for secret, one in zip(secrets, made, strict=True))


@pytest.mark.parametrize("tenant", ["", "a b", "ä", "a\n", "x" * 65, "-"])
def test_a_name_that_logs_cannot_have_is_refused(tenant: str) -> None:
    """A tenant that is no plain word ends the command with 2, and no key is shown."""
    refused = CliRunner().invoke(app, ["key", f"--tenant={tenant}"])
    assert refused.exit_code == 2
    assert "prism-" not in refused.output


@pytest.mark.parametrize("option", ["--requests-per-minute=2000000000000", "--days=9999999"])
def test_a_number_that_is_too_large_is_refused_by_its_name(option: str) -> None:
    """A limit or a time beyond what an entry can have ends the command with 2 and words about this option."""
    refused = CliRunner().invoke(app, ["key", "--tenant=a", option])
    assert refused.exit_code == 2
    assert option.split("=")[0] in refused.output
    assert "--tenant" not in refused.output
    assert "prism-" not in refused.output


def test_commands_send_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key comes from the environment, which other users cannot read."""
    monkeypatch.delenv("PRISM_API_KEY", raising=False)
    assert key_header() == {}
    monkeypatch.setenv("PRISM_API_KEY", "k")
    assert key_header() == {"authorization": "Bearer k"}
