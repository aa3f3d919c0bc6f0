"""The command that judges a run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from loadtest.records import RecordWriter, RequestRecord
from loadtest.verdict import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run of twenty answers and three refused requests, all of 200 ms."""
    writer = RecordWriter((tmp_path / "run.jsonl").open("w"), "a <test>")
    for index in range(23):
        record = RequestRecord(index, "text", index / 10, 0.001, 0.2, "refused", "429 overloaded")
        if index < 20:
            record = RequestRecord(index, "text", index / 10, 0.001, 0.2, "answered", "", 0.1, 0.02, (0.02,) * 5, 6)
        writer.add(record.packed())
    writer.end(0)
    return tmp_path


@pytest.mark.parametrize(
    ("slo", "code"),
    [
        ("{ttft_s: {p99: 0.1}, max_refused_share: 0.2}", 0),
        ("{ttft_s: {p99: 0.09}, max_refused_share: 0.2}", 1),
        ("{ttft_s: {p99: 0.1}, max_refused_share: 0.1}", 1),
        ("{ttft_s: {p98: 0.1}}", 2),
    ],
)
def test_the_exit_code_is_the_verdict(folder: Path, capsys: pytest.CaptureFixture[str], slo: str, code: int) -> None:
    """It is 0 if all objectives are met, 1 if one is not, and 2 if a file is wrong."""
    (folder / "slo.yaml").write_text(slo)
    assert main([str(folder / "run.jsonl"), "--slo", str(folder / "slo.yaml")]) == code
    printed = capsys.readouterr()
    assert printed.out.count("BROKEN") == (code == 1)
    assert bool(printed.err) is (code == 2)


def test_a_missing_run_is_void(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there exits with 2 and is named."""
    (folder / "slo.yaml").write_text("{ttft_s: {p99: 1}}")
    assert main([str(folder / "none.jsonl"), "--slo", str(folder / "slo.yaml")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_the_report_needs_no_other_file(folder: Path) -> None:
    """The page has the table and four pictures inside it, names no address, and escapes what it quotes."""
    (folder / "slo.yaml").write_text("{ttft_s: {p50: 0.2, p99: 0.09}, max_refused_share: 0.2}")
    page = folder / "report.html"
    assert main([str(folder / "run.jsonl"), "--slo", str(folder / "slo.yaml"), "--html", str(page)]) == 1
    text = page.read_text()
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/png;base64,iVBOR', text)) == 4
    assert "href=" not in text
    assert {*re.findall(r"src=\"(.{5})", text)} == {"data:"}
    assert "a &lt;test&gt;" in text
    assert text.count("class=broken>broken") == 1
