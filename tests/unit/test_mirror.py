"""Unit tests mirror the code file by file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from loadtest.servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

UNIT: Final = ROOT / "tests" / "unit"
TESTS: Final = sorted(path for path in UNIT.rglob("test_*.py") if path.parent != UNIT)


@pytest.mark.parametrize("test", TESTS, ids=lambda path: str(path.relative_to(UNIT)))
def test_a_module_of_tests_has_its_module(test: Path) -> None:
    """``tests/unit/a/test_b.py`` tests ``a/b.py``."""
    assert (ROOT / test.parent.relative_to(UNIT) / test.name.removeprefix("test_")).is_file()
