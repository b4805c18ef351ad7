"""summary.txt and report.html of a set."""

from pathlib import Path

from evaluate.estimates import Estimate
from evaluate.report.page import write_page
from evaluate.sets.figures import figures_of
from evaluate.sets.result import FROZEN, RECOMPUTED, Attention, Cost, SetResult
from evaluate.text import text_table
from store.disk.files import write_text
from store.layers.parse import spell_layers
from store.layout import REPORT, SUMMARY

TEMPLATES = Path(__file__).parent / "templates"

FIGURES = (("kl", "KL"), ("delta_ce", "delta CE"), ("top1", "top-1"))

WAYS = {
    RECOMPUTED: "Attention recomputed from the residual stream of the replaced model",
    FROZEN: "Attention frozen: its outputs are those of the model itself",
}


def publish(folder: Path, result: SetResult) -> None:
    """Writes summary.txt and report.html with its figures."""
    lines = [*verdict(result), provenance(result)]
    for way in result.sides[0].attention:
        heads, rows = table_of(result, way, with_intervals=False)
        lines += ["", WAYS[way], *text_table(rows, heads)]
    write_text(folder / SUMMARY, "\n".join(lines) + "\n")
    write_page(
        folder / REPORT,
        "set.html",
        figures_of(result),
        folder=TEMPLATES,
        title=f"Layers {spell_layers(result.layers)} of {result.model} as a set",
        verdict=verdict(result),
        provenance=provenance(result),
        tables=[(WAYS[way], *table_of(result, way, with_intervals=True)) for way in result.sides[0].attention],
        sides=result.sides,
        definitions=result.definitions,
    )


def verdict(result: SetResult) -> list[str]:
    """What all layers replaced cost, a sentence for each kind of attention, and the paired differences from ours."""
    sentences = []
    for way in result.sides[0].attention:
        costs = [f"{estimate(side.attention[way].whole.kl)} by {side.name}" for side in result.sides]
        sentences.append(f"All {len(result.layers)} MLPs replaced, attention {way}: KL {', '.join(costs)}.")
        for side in result.sides[1:]:
            more = estimate(side.attention[way].whole.minus_ours["kl"])
            sentences.append(f"KL of {side.name} less that of ours, on the same documents: {more}.")
    return sentences


def provenance(result: SetResult) -> str:
    return (
        f"{result.model}, layers {spell_layers(result.layers)} of {result.n_layers}; {result.n_predictions:,} predictions "
        f"in {result.n_documents:,} documents of {result.sequences:,} held-out sequences of {result.dataset}; CE of "
        f"the model itself {estimate(result.ce_clean)}. In brackets: 95% intervals by bootstrap over documents."
    )


def table_of(result: SetResult, way: str, with_intervals: bool) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of a table: every choice of layers once, the figures of every side."""
    heads = ["layers replaced", *(f"{label}, {side.name}" for side in result.sides for _, label in FIGURES)]
    by_side = [costs_of(side.attention[way]) for side in result.sides]
    rows = []
    for layers in by_side[0]:
        cells = [spell_layers(layers) or "none"]
        for costs in by_side:
            for key, _ in FIGURES:
                found: Estimate = getattr(costs[layers], key)
                cells.append(estimate(found) if with_intervals else f"{found.value:.4f}")
        rows.append(cells)
    return heads, rows


def costs_of(attention: Attention) -> dict[tuple[int, ...], Cost]:
    """Every cost once, by the layers replaced: from the bottom, from the top, alone."""
    return {cost.layers: cost for cost in (*attention.from_bottom, *attention.from_top, *attention.alone)}


def estimate(found: Estimate) -> str:
    """A figure with its interval, as text."""
    if found.ci95 is None:
        return f"{found.value:.4f}"
    return f"{found.value:.4f} [{found.ci95[0]:.4f}, {found.ci95[1]:.4f}]"
