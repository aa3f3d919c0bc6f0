"""Reads ``docs/path.md``: the functions that it names, in order."""

from __future__ import annotations

import re
from typing import Final

from loadtest.servers import ROOT

PATH_PAGE: Final = ROOT / "docs" / "path.md"
CONDITION: Final = re.compile(r"\*(.+?)\*")
REFERENCE: Final = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def steps(heading: str, *conditions: str) -> list[tuple[str, str]]:
    """Returns the functions of one table as pairs of file and qualified name, in order.

    Args:
        heading: The heading over the table.
        conditions: The conditions that hold. A row whose process is followed by another one, in italics, is left out.
    """
    section = PATH_PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if re.match(r"\| \d+ \|", line)]
    return [
        found
        for row in rows
        if set(CONDITION.findall(row[2])) <= set(conditions)
        for found in REFERENCE.findall(row[3])
    ]
