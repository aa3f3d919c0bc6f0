"""Reading service level objectives."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from loadtest import slo
from loadtest.fields import BadFields
from loadtest.slo import GOOD, JUDGED, read_slo

if TYPE_CHECKING:
    from pathlib import Path


def test_the_example_is_read(tmp_path: Path) -> None:
    """The example in the module's docstring has every key, and is read as it says."""
    path = tmp_path / "slo.yaml"
    path.write_text(textwrap.dedent((slo.__doc__ or "").partition(":\n\n")[2]))
    found = read_slo(path)
    assert found.percentiles_s["ttft_s", "p99"] == 1.5
    assert {name for name, _ in found.percentiles_s} == {*JUDGED}
    assert found.good_s.keys() == {*GOOD}
    assert (found.min_good_share, found.max_failed_share, found.max_refused_share) == (0.95, 0.001, 0.01)


def test_failures_are_not_allowed_unless_the_file_says_so(tmp_path: Path) -> None:
    """Without their lines, the shares of failed and refused requests must be 0."""
    path = tmp_path / "slo.yaml"
    path.write_text("ttft_s: {p50: 1}")
    found = read_slo(path)
    assert (found.max_failed_share, found.max_refused_share, found.min_good_share) == (0.0, 0.0, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it must be an object with named fields"),
        ("{", "is no YAML"),
        ("max_failed_share: 0.1", "it limits no time"),
        ("ttft: {p50: 1}", "ttft: there is no such field; there are ttft_s"),
        ("ttft_s: {p51: 1}", "ttft_s: p51: there is no such field; there are p50"),
        ("ttft_s: {p50: fast}", "ttft_s: p50: it must be a number from 0 on, not 'fast'"),
        ("ttft_s: 3", "ttft_s: it must be an object"),
        ("goodput: {icl_s: 1}", "goodput: icl_s: there is no such field"),
        ("goodput: {ttft_s: 1, min_share: 95}", "goodput: min_share: it must be a number from 0 to 1, not 95"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """The message names the key and says what would be right."""
    path = tmp_path / "slo.yaml"
    path.write_text(text)
    with pytest.raises(BadFields, match=words):
        read_slo(path)
