"""Documentation that names code or copies it."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from loadtest.servers import ROOT
from tests.helpers.config_reference import PAGE, page
from tests.helpers.path_page import PATH_PAGE, REFERENCE

if TYPE_CHECKING:
    from pathlib import Path

LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)|(?:src|srcset)=\"(?!https?:)([^\"]+)\"")
TEST_REFERENCE = re.compile(r"`(tests/[\w/]+\.py):(test_\w+)`")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("k8s/*.md")])
MAX_README_WORDS = 900


@cache
def qualified_names(file: str) -> frozenset[str]:
    """Returns every class and function of a file by its qualified name, such as ``Router.serve``."""
    found: set[str] = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + child.name)
                walk(child, f"{prefix}{child.name}.")

    walk(ast.parse((ROOT / file).read_text()), "")
    return frozenset(found)


@pytest.mark.parametrize("reference", sorted(set(REFERENCE.findall(PATH_PAGE.read_text()))), ids=":".join)
def test_the_path_names_functions_that_exist(reference: tuple[str, str]) -> None:
    """Each ``file:function`` of docs/path.md is a function or class of that file."""
    file, name = reference
    assert (ROOT / file).is_file()
    assert name in qualified_names(file)


def test_the_path_is_more_than_a_few_functions() -> None:
    """The pattern finds as many references as the page has occurrences of ``.py:``."""
    text = PATH_PAGE.read_text()
    assert len(REFERENCE.findall(text)) == text.count(".py:") > 50


def failures() -> str:
    """Returns the section of docs/operations.md about failures."""
    return (ROOT / "docs" / "operations.md").read_text().partition("\n## Failures\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("reference", sorted(set(TEST_REFERENCE.findall(failures()))), ids=":".join)
def test_the_failures_name_tests_that_exist(reference: tuple[str, str]) -> None:
    """Each ``file:test`` in the section about failures is a test of that file."""
    file, name = reference
    assert (ROOT / file).is_file()
    assert name in qualified_names(file)


def test_each_failure_is_held() -> None:
    """Each row of the table of failures names a test or a command of the load tests, or says that it has none."""
    rows = [line for line in failures().splitlines() if line.startswith("| ")][1:]
    held = re.compile(rf"{TEST_REFERENCE.pattern}|`loadtest\.chaos|`tests\.helpers\.two_nodes`|none: ")
    assert len(rows) > 15
    assert [row for row in rows if not held.search(row.split("|")[-2])] == []


def test_the_configuration_page_is_up_to_date() -> None:
    """docs/configuration.md equals what ``make docs`` writes."""
    assert PAGE.read_text() == page(), "run make docs"


def test_every_field_of_the_configuration_is_explained() -> None:
    """Every row of docs/configuration.md has a meaning, except for rows that only name a section."""
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    unexplained = [row for row in rows if row.rstrip().endswith("|  |") and "a section of its own" not in row]
    assert unexplained == []


@pytest.mark.parametrize("document", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a page leads to a file or folder of the repository."""
    links = [first or second for first, second in LINK.findall(document.read_text())]
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    """The README has fewer than 900 words."""
    assert len((ROOT / "README.md").read_text().split()) < MAX_README_WORDS


@pytest.mark.parametrize("document", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_a_page_runs_exist(document: Path) -> None:
    """``python -m some.module`` on a page names a module of the repository."""
    modules = re.findall(r"python -m ((?:cluster|deployments|loadtest|tests)[\w.]*)", document.read_text())
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_worked_change_applies(tmp_path: Path) -> None:
    """The diffs of CONTRIBUTING's worked change apply to the tree, or somebody has just applied all of them."""
    diffs = re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(diffs) > 4
    patch = tmp_path / "worked.patch"
    patch.write_text("".join(diffs))
    check = ["git", "apply", "--check"]
    forward = subprocess.run([*check, str(patch)], capture_output=True, text=True, cwd=ROOT)
    backward = subprocess.run([*check, "--reverse", str(patch)], capture_output=True, text=True, cwd=ROOT)
    assert forward.returncode == 0 or backward.returncode == 0, forward.stderr
