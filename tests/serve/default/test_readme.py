"""The README's code blocks work as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadtest.servers import ROOT

if TYPE_CHECKING:
    from deployments.local.launch import Cluster

DEFAULT_URL = "http://127.0.0.1:8000"
BIN = Path(sys.executable).parent
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def run(language: str, code: str, url: str) -> str:
    """Runs a code block of the README against the running cluster and returns its output."""
    line = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
    line[-1] = line[-1].replace(DEFAULT_URL, url).replace(".venv/bin/", f"{BIN}/")
    environment = {**os.environ, "PRISM_URL": url}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=range(len(BLOCKS)))
def test_blocks_run(cluster: Cluster, language: str, code: str) -> None:
    """Every bash and python block of the README runs without an error."""
    assert run(language, code, cluster.url)


def test_answers_are_right(cluster: Cluster) -> None:
    """Each of the README's ways of asking names the photograph's subject and the digit correctly."""
    said = [run(language, code, cluster.url) for language, code in BLOCKS]
    assert len(said) == 3
    command, curl, python = said
    subject, digit = command.splitlines()[:2]
    assert (subject, digit) == ("cat", "7")
    assert f'"content":"{subject}"' in curl
    assert python == digit
