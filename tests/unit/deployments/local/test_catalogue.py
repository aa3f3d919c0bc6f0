"""Reading the catalogue of GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deployments.local.catalogue import SHIPPED_CATALOGUE, CatalogueError, read_catalogue

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = SHIPPED_CATALOGUE.read_text()


def test_the_shipped_catalogue_names_its_sources() -> None:
    """The shipped catalogue has three kinds of GPUs, and each figure's origin in words."""
    catalogue = read_catalogue(SHIPPED_CATALOGUE)
    assert set(catalogue.gpus) == {"H100", "L40S", "L4"}
    assert all(gpu.source.startswith("Published") and "Price: " in gpu.source for gpu in catalogue.gpus.values())
    assert "assumed" in catalogue.efficiency.source


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("price_per_hour: 0.468", "price_per_hour: -1", "gpus.L4.price_per_hour: it must be above 0, not -1"),
        ("price_per_hour: 0.468", "price_per_hour: cheap", 'gpus.L4.price_per_hour: it must be a number, not "cheap"'),
        ("    price_per_hour: 0.468\n", "", "gpus.L4.price_per_hour: it is missing"),
        ("  tower: 0.44", "  tower: 44", "efficiency.tower: it must be at most 1, not 44"),
        ("  tower: 0.44", "  towers: 0.44", "efficiency.towers: there is no such key; did you mean tower?"),
        ("gpus:", "gpu:", "gpu: there is no such key; did you mean gpus?"),
        ("  num_layers: 64", "  num_layers: 64.5", "model.num_layers: it must be an integer, not 64.5"),
        ("model:", "- model:", "it is no YAML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    """A wrong key or value is named, with what was given and what would be right."""
    path = tmp_path / "mine.yaml"
    assert old in SHIPPED
    path.write_text(SHIPPED.replace(old, new))
    with pytest.raises(CatalogueError) as caught:
        read_catalogue(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(said)


@pytest.mark.parametrize(
    ("text", "said"), [("[]", "it must be a mapping"), ("{", "it is no YAML"), (None, "it cannot be read")]
)
def test_a_file_that_is_no_catalogue_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    """A list, half a mapping and a file that is not there are refused in plain words."""
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CatalogueError, match=said):
        read_catalogue(path)
