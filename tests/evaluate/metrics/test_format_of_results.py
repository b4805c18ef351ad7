"""FORMAT.md against the models of metrics.json and comparison.json: every key is described, and no other."""

import re
from pathlib import Path

import pytest

from evaluate.estimates import Estimate
from evaluate.metrics import measurement as models

TEXT = (Path(__file__).parents[3] / "store" / "FORMAT.md").read_text()

PARTS = {
    "estimate": Estimate,
    "`per_prefix`": models.PrefixMeasurement,
    "band": models.Band,
    "`density_histogram`": models.DensityHistogram,
    "`max_cosine_histogram`": models.CosineHistogram,
    "`worst_rows`": models.WorstRow,
    "`letters`": models.Letter,
    "`seeds`": models.OverSeeds,
    "`matched`": models.Matched,
    "`at_equal_l0`": models.AtL0,
    "`frontier`": models.FrontierPoint,
    "`frontier_delta_ce`, `frontier_kl`": models.FrontierEstimate,
    "`detectable`": models.Detectable,
    "`checks`": models.Check,
}


def rows(heading: str, columns: int) -> list[list[str]]:
    """The cells of the section's tables with so many columns, without their heads."""
    section = TEXT.split(f"\n### {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if len(row) == columns and row[0] not in ("key", "part")]


def keys(cells: list[str]) -> list[str]:
    return [key for cell in cells for key in re.findall(r"`(\w+)`", cell)]


@pytest.mark.parametrize(
    ("heading", "model"), [("metrics.json", models.Measurement), ("comparison.json", models.Comparison)]
)
def test_every_key_of_a_file_is_described_in_its_order(heading, model):
    assert keys([row[0] for row in rows(heading, 2)]) == list(model.model_fields)


def test_every_key_of_a_part_is_described():
    described: dict[str, list[str]] = {}
    part = ""
    for name, listed, meaning in [*rows("metrics.json", 3), *rows("comparison.json", 3)]:
        part = name or part
        described.setdefault(part, []).extend(keys([listed]))
        assert meaning
    assert described == {name: list(model.model_fields) for name, model in PARTS.items()}
