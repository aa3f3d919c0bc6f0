"""The ``prism`` command as far as it goes without a cluster."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from deployments.local import cli, torchvision_cure
from deployments.local.torchvision_cure import CureNotWritableError
from loadtest.servers import changed_app


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current directory during the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_application_file_ships() -> None:
    """The names that ``prism`` offers are the application files in ``deployments``."""
    files = {path.stem for path in cli.DEPLOYMENTS.glob("*.yaml")} - {"kustomization"}
    assert set(cli.SHIPPED) == files


@pytest.mark.parametrize("name", ["app", "app.yaml", "qwen2_5_vl_32b", "qwen2_5_vl_32b.yaml"])
def test_a_name_finds_the_file_that_ships(here: Path, name: str) -> None:
    """A name that is no path here finds the shipped file of that name, with or without .yaml."""
    assert not (here / name).exists()
    assert cli._application_file(name) == cli.DEPLOYMENTS / f"{name.removesuffix('.yaml')}.yaml"


def test_a_file_in_this_folder_comes_first(here: Path) -> None:
    """An existing path is used even if a shipped file has the same name."""
    (here / "app.yaml").write_text("applications: []")
    assert cli._application_file("app.yaml") == Path("app.yaml")


@pytest.mark.usefixtures("here")
def test_an_unknown_name_is_refused_with_those_that_ship() -> None:
    """An unknown name ends the command with code 2 and lists the shipped files."""
    result = CliRunner().invoke(cli.app, ["serve", "nosuch"])
    assert result.exit_code == 2
    assert result.stderr == "There is no application file nosuch; Prism ships app and qwen2_5_vl_32b.\n"


def test_an_environment_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """If torchvision cannot be made importable, ``prism serve`` ends with code 1 and says why."""

    def refuse() -> bool:
        raise CureNotWritableError("not writable")

    monkeypatch.setattr(torchvision_cure, "install", refuse)
    result = CliRunner().invoke(cli.app, ["serve"])
    assert (result.exit_code, result.stderr) == (1, "not writable\n")


def test_the_command_is_named_as_a_shell_finds_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed command is ``prism`` if that is on the PATH, and otherwise its path, relative if it is below this
    folder."""
    program = here / ".venv" / "bin" / "prism"
    program.parent.mkdir(parents=True)
    shutil.copy("/bin/sh", program)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", os.fspath(here / "nothing"))
    assert cli._program() == ".venv/bin/prism"
    monkeypatch.chdir("/usr")
    assert cli._program() == str(program)
    monkeypatch.setenv("PATH", str(program.parent))
    assert cli._program() == "prism"


def test_a_picture_in_a_folder_with_a_space_is_quoted(here: Path) -> None:
    """The printed command can be pasted into a shell."""
    assert cli._from_here(here / "my pictures" / "cat.png") == "'my pictures/cat.png'"


@pytest.mark.usefixtures("here")
def test_check_says_what_a_right_file_reserves() -> None:
    """``prism check`` exits with 0 for a file that can be served and says what its pools reserve."""
    result = CliRunner().invoke(cli.app, ["check", "qwen2_5_vl_32b"])
    assert result.exit_code == 0
    assert result.stdout.endswith("is right. Its pools reserve 38 CPUs and 10 GPUs.\n")


def test_check_says_everything_that_is_wrong(here: Path) -> None:
    """``prism check`` exits with 2 for a file with mistakes and has a line for each."""
    text = (cli.DEPLOYMENTS / "app.yaml").read_text()
    (here / "mine.yaml").write_text(
        text.replace("num_threads: 1", "num_threads: 0").replace("kv_cache_gib: 1", "kv_cache_gib: a")
    )
    result = CliRunner().invoke(cli.app, ["check", "mine.yaml"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "mine.yaml: applications.args.encoder.num_threads: it must be at least 1, not 0",
        'mine.yaml: applications.args.decoder.kv_cache_gib: it must be an integer, not "a"',
    ]
    (here / "mine.yaml").write_text("applications: [")
    assert "mine.yaml: the file is no YAML at line 1:" in CliRunner().invoke(cli.app, ["check", "mine.yaml"]).stderr


def test_a_refused_key_names_the_variable() -> None:
    """The message of a server that asks for a key tells where the command takes it from. Other errors do not."""
    body = {"error": {"message": "No key."}}
    assert cli._error(httpx.Response(401, json=body)) == "No key. (This command sends the key in PRISM_API_KEY.)"
    assert cli._error(httpx.Response(403, json=body)) == "No key."


@pytest.mark.usefixtures("here")
def test_a_file_of_keys_that_cannot_be_used_is_said_before_anything_starts(here: Path) -> None:
    """``prism serve`` ends with 2 and names the file of keys and its problem, and starts no cluster."""
    keys = here / "keys.yaml"
    (here / "mine.yaml").write_text(yaml.safe_dump(changed_app({"Router": {"user_config": {"keys_file": str(keys)}}})))
    missing = CliRunner().invoke(cli.app, ["serve", "mine.yaml"])
    keys.write_text("- tenant: a\n")
    wrong = CliRunner().invoke(cli.app, ["serve", "mine.yaml"])
    assert (missing.exit_code, wrong.exit_code) == (2, 2)
    assert missing.stderr == f"{keys}, the keys_file of the Router: there is no file\n"
    assert wrong.stderr == f"{keys}, the keys_file of the Router: entry 0.sha256: the field is missing\n"


@pytest.mark.usefixtures("here")
def test_a_relative_path_of_keys_is_refused(here: Path) -> None:
    """A path that would mean another file on each machine is refused."""
    (here / "mine.yaml").write_text(
        yaml.safe_dump(changed_app({"Router": {"user_config": {"keys_file": "keys.yaml"}}}))
    )
    refused = CliRunner().invoke(cli.app, ["check", "mine.yaml"])
    assert refused.exit_code == 2
    assert "keys_file" in refused.stderr
