"""What people read: a text table, and one self-contained HTML page with the same figures and plots."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluate.labels import Label, Place, shown_in
from evaluate.metrics.matched import PARTS
from evaluate.metrics.measurement import Check, Figures, Measurement
from evaluate.metrics.readings import Reading, readings
from evaluate.metrics.worst import in_words
from evaluate.report.chance import of_chance
from evaluate.report.figures import FIGURES, Results
from evaluate.report.page import write_page
from evaluate.text import markdown_table, text_table
from evaluate.training_log import read_log
from store.shards.reader import Store

FEW_DOCUMENTS = 50
"""With fewer held-out documents their number is said beside the verdict."""

BETTER = "better at equal L0"
"""The figures beside it were measured at the L0 of each, which is another one unless both have the same."""


APPENDIX = (
    "Targeted perturbation is kept for comparison with older reports. An audit of SAEBench (arXiv 2605.18229) warns of it: "
    "other seeds move it by 23 to 39%, it does not rank dictionaries whose truth is known, and it falls with training."
)


def rows_of(measured: Sequence[Figures], place: Place = "report") -> list[Label]:
    """The rows of a table: the metrics that were measured of at least one."""
    return [label for label in shown_in(place) if any(cell(m, label) != "-" for m in measured)]


def appendix_rows(measured: Sequence[Measurement]) -> list[list[str]]:
    """The rows of the appendix, each with its label; empty where none of its metrics was measured."""
    return [[label.label, *(cell(m, label) for m in measured)] for label in rows_of(measured, "appendix")]


def cell(metrics: Figures, label: Label) -> str:
    """A figure, and its 95% interval in brackets where it has one."""
    if not metrics.has(label.key):
        return "-"
    value = metrics.value(label.key)
    if value is None:
        return "not stated"
    if value > label.most:
        return "-"
    shown = label.form.format(value)
    interval = metrics.interval(label.key)
    if interval is None:
        return shown
    low, high = map(label.form.format, interval)
    return f"{shown} [{low}, {high}]"


def prefix_rows(metrics: Measurement) -> list[tuple[str, list[str]]]:
    """The table's rows of one transcoder, by prefix: each is a transcoder by itself."""
    each = list(metrics.per_prefix.values())
    return [(label.label, [cell(m, label) for m in each]) for label in rows_of(each)]


def summary(measured: Sequence[Measurement], store: Store, winners: Mapping[str, str]) -> str:
    """The table as plain text, with the rows and the store that it was measured on."""
    labels = rows_of(measured)
    rows = [[label.label, *(cell(m, label) for m in measured)] for label in labels]
    head, *table = text_table(rows, ["", *(m.name for m in measured)])
    notes = [winner_note(winners.get(label.key), measured) for label in labels]
    lines = [head, *(f"{line}   {note}".rstrip() for line, note in zip(table, notes, strict=True))]
    for m in measured:
        if len(m.fvu_per_prefix) > 1:
            prefixes = ", ".join(f"{size}: {value:.4f}" for size, value in m.fvu_per_prefix.items())
            lines.append(f"FVU by prefix of {m.name}: {prefixes}")
        lines += [f"WARNING, {warning}" for warning in m.warnings]
    lines += not_measured(measured)
    lines.append(provenance(measured[0], store))
    return "\n".join(lines) + "\n"


def winner_note(winner: str | None, measured: Sequence[Measurement]) -> str:
    """Who is better in one metric, or why nobody is; empty where it is not judged."""
    if winner is None:
        return ""
    names = {"ours": measured[0].name, "other": measured[1].name}
    return f"{BETTER}: {names[winner]}" if winner in names else winner


def not_measured(measured: Sequence[Measurement]) -> list[str]:
    """A line for each part of the comparison that could not be measured, with its reason."""
    return [f"Not measured: {PARTS[part]}: {reason}" for part, reason in measured[0].not_measured.items()]


def provenance(metrics: Measurement, store: Store) -> str:
    """The rows, documents and store of a measurement, and what its intervals are of."""
    recipe = store.manifest.recipe
    target = store.target
    across = "" if target is None else f" to layer {target.manifest.recipe.layer} (store {target.fingerprint})"
    said = [
        f"{metrics.n_rows:,} held-out rows of {metrics.n_documents:,} documents "
        f"({metrics.n_outliers:,} outliers) of {recipe.model} layer {recipe.layer}{across} "
        f"on {recipe.dataset}; store {store.fingerprint}"
    ]
    if metrics.n_repeated_documents:
        said.append(f"{metrics.n_repeated_documents:,} of these documents are training documents too, token for token")
    if metrics.n_predictions is not None:
        documents = metrics.n_prediction_documents
        said.append(f"CE and KL: {metrics.n_predictions:,} predictions in {documents:,} of the documents")
    drawn = "documents"
    if metrics.absorption is not None:
        drawn += " (words for absorption, letters for splitting, tokens for probes)"
    return ". ".join([*said, f"In brackets: 95% intervals by bootstrap over {drawn}"])


def markdown(measured: Sequence[Measurement], store: Store, winners: Mapping[str, str]) -> str:
    """The verdict and the table as Markdown, for papers and issues."""
    rows = []
    for label in rows_of(measured):
        better = winner_note(winners.get(label.key), measured).removeprefix(f"{BETTER}: ")
        rows.append([label.label, *(cell(m, label) for m in measured), better])
    heads = ["held-out metric", *(m.name for m in measured), BETTER]
    lines = [verdict(measured, winners), "", *markdown_table(rows, heads)]
    for m in measured:
        if len(m.per_prefix) > 1 and not m.null:
            by_prefix = [[label, *cells] for label, cells in prefix_rows(m)]
            lines += ["", *markdown_table(by_prefix, [f"{m.name}, by prefix", *m.per_prefix])]
    lines += [line for each in not_measured(measured) for line in ("", each)]
    appendix = appendix_rows(measured)
    if appendix:
        lines += [
            "",
            f"Appendix. {APPENDIX}",
            "",
            *markdown_table(appendix, ["held-out metric", *(m.name for m in measured)]),
        ]
    return "\n".join([*lines, "", provenance(measured[0], store), ""])


def write_report(
    path: Path,
    measured: Sequence[Measurement],
    store: Store,
    run: Path,
    winners: Mapping[str, str],
    checks: Sequence[Check],
) -> None:
    """Writes the page: verdict, table, figures, worst tokens, what was measured and what was checked.

    Args:
        path: of the page; figures go beside it.
        measured: a column of the table each.
        store: the store on which they were measured.
        run: the folder with the training log.
        winners: of a comparison, by metric.
        checks: of a comparison.
    """
    results = Results(measured, read_log(run))
    rows = [
        (label.label, label.explained, [cell(m, label) for m in measured], winners.get(label.key))
        for label in rows_of(measured)
    ]
    reasons = sorted({won for won in winners.values() if won.startswith("not judged")})
    nested = [m for m in measured if len(m.per_prefix) > 1 and not m.null]
    shown, no_words = worded(measured, store)
    write_page(
        path,
        "report.html",
        [figure(results) for figure in FIGURES],
        title=" against ".join(m.name for m in measured[:2]),
        verdict=verdict(measured, winners),
        measured=shown,
        rows=rows,
        provenance=provenance(measured[0], store),
        recipe=store.manifest.recipe,
        fingerprint=store.fingerprint,
        checks=checks,
        not_measured=not_measured(measured),
        no_words=no_words,
        better=BETTER,
        unjudged=reasons if len(reasons) > 1 else [],
        nowhere=reasons[0] if len(reasons) == 1 else "",
        appendix=appendix_rows(measured),
        why_appendix=APPENDIX,
        prefixes=[(m.name, list(m.per_prefix), prefix_rows(m)) for m in nested],
    )


def worded(measured: Sequence[Measurement], store: Store) -> tuple[list[dict[str, Any]], str]:
    """The measurements as JSON with the worst rows in words; or, where the tokenizer cannot be had, in numbers, and why."""
    if not any(m.worst_rows for m in measured):
        return [m.as_json() for m in measured], ""
    from harvest.model.tokenizer import load_tokenizer, token_texts

    reason = ""
    try:
        texts = partial(token_texts, load_tokenizer(store.manifest.recipe))
    except ValueError as error:
        reason = str(error)
        texts = _numbers
    return [m.as_json() | {"worst_rows": in_words(m.worst_rows, texts)} for m in measured], reason


def _numbers(ids: list[int]) -> list[str]:
    return [f"#{number} " for number in ids]


def verdict(measured: Sequence[Measurement], winners: Mapping[str, str]) -> str:
    """The result in a few sentences: each at its own L0, both at an equal one, and what puts them in place."""
    ours = measured[0]
    first = f"{ours.name} leaves {ours.fvu:.1%} of the variance unexplained at a mean L0 of {ours.l0_mean:.1f}"
    few = [f"Only {ours.n_documents} held-out documents were measured, so intervals are wide."] * (
        ours.n_documents < FEW_DOCUMENTS
    )
    if len(measured) == 1:
        return " ".join([f"{first}, with {ours.dead_fraction:.2%} dead features.", *few])
    other = measured[1]
    own = f"{first}; {other.name} leaves {other.fvu:.1%} at {other.l0_mean:.1f}{_between_own(other)}."
    chance = of_chance(measured, winners)
    return " ".join([own, judgement(measured, winners), *chance, *beaten_by(measured), *few])


def _between_own(other: Measurement) -> str:
    """The difference between both at their own L0."""
    apart = (other.minus_first or {}).get("fvu")
    if apart is None:
        return ""
    ends = "" if apart.ci95 is None else f" [{min(map(abs, apart.ci95)):.4f}, {max(map(abs, apart.ci95)):.4f}]"
    if apart.ci95 is not None and apart.ci95[0] < 0 < apart.ci95[1]:
        ends = " (the interval includes zero)"
    return f" (each at its own L0: FVU {abs(apart.value):.4f} apart{ends})"


def beaten_by(measured: Sequence[Measurement]) -> list[str]:
    """A sentence where a trivial predictor explains more than both transcoders."""
    best = min((m for m in measured if m.trivial), key=lambda m: m.fvu, default=None)
    if best is None or best.fvu >= min(m.fvu for m in measured[:2]):
        return []
    return [f"A linear map beats both: {best.name} leaves {best.fvu:.1%}."]


def judgement(measured: Sequence[Measurement], winners: Mapping[str, str]) -> str:
    """Both readings at an equal L0, and who is better in what."""
    names = {"ours": measured[0].name, "other": measured[1].name}
    found: dict[str, list[str]] = {}
    for label in shown_in("headline"):
        if label.key in winners:
            found.setdefault(winners[label.key], []).append(label.brief)
    read = readings(measured[0], measured[1])
    if not {"tie", *names} & found.keys():
        reason = winners["fvu"].removeprefix("not judged: ")
        return " ".join([*(_reading(one, measured) for one in read), f"No winner is named: {reason}."])
    said = []
    for outcome, labels in found.items():
        in_what = " and ".join(labels)
        if outcome == "tie":
            said.append(f"{in_what}: a tie, within chance")
        elif outcome in names:
            said.append(f"{in_what}: {names[outcome]} is better")
        else:
            said.append(f"{in_what}: {outcome}")
    judged = f"At equal L0, by 95% intervals of the differences, paired by document: {'; '.join(said)}."
    return " ".join([*(_reading(one, measured) for one in read), judged])


def _reading(one: Reading, measured: Sequence[Measurement]) -> str:
    """Both at one L0, in a sentence."""
    index = 0 if one.moved == "ours" else 1
    moved = measured[index].name
    kept = measured[1 - index].name
    said = f"At the L0 of {kept} ({one.l0[0]:.1f} against {one.l0[1]:.1f}): FVU {one.fvu[0]:.4f} against {one.fvu[1]:.4f}"
    if one.is_past_its_best:
        own = f"{one.own[1]:.4f} at {one.own[0]:.1f}"
        return f"{said}, which does not count: {moved} is worse there than at its own L0 ({own})."
    ends = one.minus_ours["fvu"].ci95
    if ends is None or ends[0] <= 0 <= ends[1]:
        return f"{said}."
    low, high = sorted(map(abs, ends))
    return f"{said}, {low:.4f} to {high:.4f} apart."
