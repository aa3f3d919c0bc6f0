"""Reads ``docs/path.md``: the functions that it names, in order."""

from __future__ import annotations

import re
from typing import Final

from loadtest.servers import ROOT

PATH_PAGE: Final = ROOT / "docs" / "path.md"
REFERENCE: Final = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def steps(heading: str) -> list[tuple[str, str]]:
    """Returns the functions of one table as pairs of file and qualified name, in order, without the steps that only
    some requests take.

    Args:
        heading: The heading over the table. Rows whose process is followed by a condition in italics are left out.
    """
    section = PATH_PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if re.match(r"\| \d+ \|", line)]
    return [found for row in rows if "*" not in row[2] for found in REFERENCE.findall(row[3])]
