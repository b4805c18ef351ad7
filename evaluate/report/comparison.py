"""What people read: a text table, and one self-contained HTML page with the same figures and plots."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluate.labels import Label, Place, shown_in
from evaluate.metrics.matched import PARTS
from evaluate.metrics.measurement import Check, Figures, Measurement
from evaluate.metrics.worst import in_words
from evaluate.report.figures import FIGURES, Results
from evaluate.report.page import write_page
from evaluate.report.verdict import sentences, verdict
from evaluate.text import markdown_table, text_table
from evaluate.training_log import read_log
from store.counts import counted
from store.shards.reader import Store

log = logging.getLogger(__name__)
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


def cell(metrics: Figures, label: Label, with_interval: bool = True) -> str:
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
    if interval is None or not with_interval:
        return shown
    low, high = map(label.form.format, interval)
    return f"{shown} [{low}, {high}]"


def prefix_rows(metrics: Measurement) -> list[tuple[str, list[str]]]:
    """The table's rows of one transcoder, by prefix: each is a transcoder by itself."""
    each = list(metrics.per_prefix.values())
    return [(label.label, [cell(m, label) for m in each]) for label in rows_of(each)]


def summary(measured: Sequence[Measurement], store: Store, winners: Mapping[str, str]) -> str:
    """The table as plain text, with the rows and the store that it was measured on.

    Columns of several are numbered, and trivial predictors and nulls go without intervals: a terminal is narrow.
    """
    labels = rows_of(measured)
    several = len(measured) > 1
    heads = [f"({number})" for number in range(1, len(measured) + 1)] if several else [measured[0].name]
    rows = [[label.label, *(cell(m, label, not (m.trivial or m.null)) for m in measured)] for label in labels]
    head, *table = text_table(rows, ["", *heads])
    notes = [winner_note(winners.get(label.key), ("(1)", "(2)")).partition(":")[0] for label in labels]
    lines = [f"{number} {name}" for number, name in zip(heads, told_apart(measured), strict=True)] if several else []
    lines.append(f"{head}   {BETTER}" if winners else head)
    lines += [f"{line}   {note}".rstrip() for line, note in zip(table, notes, strict=True)]
    lines += not_judged(labels, winners)
    for m in measured:
        if len(m.fvu_per_prefix) > 1:
            prefixes = ", ".join(f"{size}: {value:.4f}" for size, value in m.fvu_per_prefix.items())
            lines.append(f"FVU by prefix of {m.name}: {prefixes}")
        lines += [f"WARNING, {warning}" for warning in m.warnings]
    lines += not_measured(measured)
    lines.append(provenance(measured[0], store))
    return "\n".join(lines) + "\n"


def not_judged(labels: Sequence[Label], winners: Mapping[str, str]) -> list[str]:
    """A line for each reason why nobody is better; where there are several, with the metrics of each."""
    metrics: dict[str, list[str]] = {}
    for label in labels:
        reason = winners.get(label.key, "")
        if reason.startswith("not judged"):
            metrics.setdefault(reason, []).append(label.brief)
    return [reason if len(metrics) == 1 else f"{reason} ({', '.join(each)})" for reason, each in metrics.items()]


def told_apart(measured: Sequence[Measurement]) -> list[str]:
    """The names, each with its source where another has the same."""
    names = [m.name for m in measured]
    return [f"{m.name}, from {m.source}" if names.count(m.name) > 1 else m.name for m in measured]


def winner_note(winner: str | None, names: Sequence[str]) -> str:
    """Who is better in one metric, or why nobody is; empty where it is not judged.

    names: of ours and of the one that it is judged against.
    """
    sides: dict[str, str] = dict(zip(("ours", "other"), names, strict=False))  # a run by itself has no other
    return sides.get(winner or "", winner or "")


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
        f"({counted(metrics.n_outliers, 'outlier')}) of {recipe.model} layer {recipe.layer}{across} "
        f"on {recipe.dataset}; store {store.fingerprint}"
    ]
    said += repeated_documents(metrics)
    if metrics.n_predictions is not None:
        documents = metrics.n_prediction_documents
        said.append(f"CE and KL: {metrics.n_predictions:,} predictions in {documents:,} of the documents")
    drawn = "documents"
    if metrics.absorption is not None:
        drawn += " (words for absorption, letters for splitting, tokens for probes)"
    return ". ".join([*said, f"In brackets: 95% intervals by bootstrap over {drawn}"])


def repeated_documents(metrics: Measurement) -> list[str]:
    """How many held-out documents are training documents too, for people; nothing where none is."""
    n = metrics.n_repeated_documents
    return [f"{n:,} held-out documents are training documents too, token for token"] if n else []


def markdown(measured: Sequence[Measurement], store: Store, winners: Mapping[str, str]) -> str:
    """The verdict and the table as Markdown, for papers and issues."""
    rows = []
    for label in rows_of(measured):
        better = winner_note(winners.get(label.key), [m.name for m in measured[:2]])
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
        verdict=sentences(measured, winners),
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
        log.warning("the report numbers tokens instead of naming them: %s", reason)
        texts = _numbers
    return [m.as_json() | {"worst_rows": in_words(m.worst_rows, texts)} for m in measured], reason


def _numbers(ids: list[int]) -> list[str]:
    return [f"#{number} " for number in ids]
