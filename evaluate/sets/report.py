"""summary.txt and report.html of a set."""

from pathlib import Path

from evaluate.estimates import Estimate
from evaluate.intervals import MIN_DOCUMENTS
from evaluate.report.page import write_page
from evaluate.sets.figures import figures_of
from evaluate.sets.result import FROZEN, RECOMPUTED, Attention, Cost, SetResult
from evaluate.text import text_table
from store.disk.files import write_text
from store.layers.parse import spell_layers
from store.layout import REPORT, SUMMARY

TEMPLATES = Path(__file__).parent / "templates"

FIGURES = (("kl", "KL"), ("delta_ce", "delta CE"), ("top1", "top-1"))

GROWTH = "Relative squared error of each layer's output, all layers of the set up to it replaced"

WAYS = {
    RECOMPUTED: "Attention recomputed from the residual stream of the replaced model",
    FROZEN: "Attention frozen: its outputs are those of the model itself",
}


def publish(folder: Path, result: SetResult) -> None:
    """Writes summary.txt and report.html with its figures."""
    lines = [*verdict(result), provenance(result)]
    for caption, heads, rows in tables_of(result, with_intervals=False):
        lines += ["", caption, *text_table(rows, heads)]
    write_text(folder / SUMMARY, "\n".join(lines) + "\n")
    write_page(
        folder / REPORT,
        "set.html",
        figures_of(result),
        folder=TEMPLATES,
        title=f"Layers {spell_layers(result.layers)} of {result.model} as a set",
        verdict=verdict(result),
        provenance=provenance(result),
        tables=tables_of(result, with_intervals=True),
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
        f"the model itself {estimate(result.ce_clean)}. {of_intervals(result)}."
    )


def of_intervals(result: SetResult) -> str:
    """What the brackets hold, or why there are none."""
    if result.has_intervals:
        return "In brackets: 95% intervals by bootstrap over documents"
    return f"Intervals need {MIN_DOCUMENTS} documents: give more --sequences"


def tables_of(result: SetResult, with_intervals: bool) -> list[tuple[str, list[str], list[list[str]]]]:
    """Caption, heads and rows of each table: the costs with each kind of attention, then the error of each layer."""
    ways = list(result.sides[0].attention)
    costs = [(WAYS[way], *table_of(result, way, with_intervals)) for way in ways]
    return [*costs, (GROWTH, *growth_of(result, with_intervals))]


def table_of(result: SetResult, way: str, with_intervals: bool) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of a table: every choice of layers once, the figures of every side."""
    heads = ["layers replaced", *(f"{label}, {side.name}" for side in result.sides for _, label in FIGURES)]
    by_side = [costs_of(side.attention[way]) for side in result.sides]
    rows = []
    for layers in by_side[0]:
        cells = [spell_layers(layers) or "none"]
        for costs in by_side:
            cells += [estimate(getattr(costs[layers], key), with_intervals) for key, _ in FIGURES]
        rows.append(cells)
    return heads, rows


def growth_of(result: SetResult, with_intervals: bool) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of a table: the relative error of each layer's output, of every side."""
    columns = [(side, way) for side in result.sides for way in side.attention]
    heads = ["layer", *(f"{side.name}, {way}" for side, way in columns)]
    points = [side.attention[way].growth for side, way in columns]
    rows = [
        [str(each[0].layer), *(estimate(point.error, with_intervals) for point in each)]
        for each in zip(*points, strict=True)
    ]
    return heads, rows


def costs_of(attention: Attention) -> dict[tuple[int, ...], Cost]:
    """Every cost once, by the layers replaced: from the bottom, from the top, alone."""
    return {cost.layers: cost for cost in (*attention.from_bottom, *attention.from_top, *attention.alone)}


def estimate(found: Estimate, with_interval: bool = True) -> str:
    """A figure, and its interval, as text."""
    if found.ci95 is None or not with_interval:
        return f"{found.value:.4f}"
    return f"{found.value:.4f} [{found.ci95[0]:.4f}, {found.ci95[1]:.4f}]"
