"""What people read: a text table, and one self-contained HTML page with the same figures and plots."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evaluate.metrics.worst import in_words
from evaluate.report.figures import by_band, by_dimension, by_prefix, cosines, curves, densities, frontier, frontier_ce
from evaluate.report.page import Figure, write_page
from evaluate.rows import FRONTIER_ROWS
from store.shards.reader import Store

ROWS = (
    ("fvu", "FVU", "{:.4f}", "fraction of variance unexplained; lower is better"),
    ("fvu_without_outliers", "FVU without outlier rows", "{:.4f}", "rows above 5 times the median norm left out"),
    ("cosine_similarity", "cosine similarity", "{:.4f}", "mean over rows; higher is better"),
    ("mse", "MSE", "{:.4g}", "per entry, in raw units"),
    ("delta_ce", "delta CE, nats", "{:+.4f}", "what its output in the MLP's place costs the model; lower is better"),
    ("kl", "KL, nats", "{:.4f}", "of the model's predictions from what they were; lower is better"),
    ("ce_recovered", "CE recovered", "{:.1%}", "share of what zero ablation costs; unstable, never to be read alone"),
    ("ce_clean", "CE of the model, nats", "{:.4f}", "as it is, on the same predictions"),
    ("ce_mean_ablated", "CE, MLP's mean put in", "{:.4f}", ""),
    ("ce_zero_ablated", "CE, MLP left out", "{:.4f}", ""),
    (
        "absorption",
        "first-letter absorption",
        "{:.3f}",
        "words whose letter another latent took over; lower is better",
    ),
    ("absorption_chanin", "absorption, Chanin et al.", "{:.3f}", "the same by the stricter rule of arXiv 2409.14507"),
    ("splitting", "splitting", "{:.2f}", "latents that share one letter; 1 is best"),
    (
        "sparse_probing",
        "sparse probing, 1 latent",
        "{:.3f}",
        "balanced accuracy on properties of tokens; higher is better",
    ),
    ("tpp", "targeted perturbation", "{:.3f}", "own accuracy lost beyond that of other properties; higher is better"),
    ("l0_mean", "L0, mean", "{:.1f}", "active latents per row"),
    ("l0_median", "L0, median", "{:.0f}", ""),
    ("k", "L0 intended", "{}", "k, or the label of the release"),
    ("d_sae", "width", "{:,}", "latents in the dictionary"),
    ("dead_features", "dead features", "{:,}", "never fired on these rows"),
    ("dead_fraction", "dead share", "{:.2%}", ""),
    (
        "redundancy",
        "redundancy",
        "{:.2e}",
        "share of decoder pairs with |cosine| > 0.9 (older reports: absorption score)",
    ),
    ("mean_max_cosine", "mean largest cosine", "{:.3f}", "of each decoder row with another"),
    ("coactivation", "co-activation", "{:.3f}", "mean largest cosine of two latents' firing patterns; lower is better"),
    (
        "monosemanticity",
        "monosemanticity",
        "{:.3f}",
        "cosine of mlp_out where a latent fires (arXiv 2504.02821); a proxy",
    ),
    ("token_purity", "token purity", "{:.3f}", "share of a latent's firings on its commonest token; a proxy"),
    ("best_scale", "best scale", "{:.3f}", "factor by which the output would fit best; sound ones are near 1"),
    ("fvu_scalar_variance", "legacy scalar-variance FVU", "{:.4f}", "always lower; not comparable with FVU"),
    (
        "explained_variance_saelens_legacy",
        "legacy SAELens explained variance",
        "{:.4f}",
        "mean over rows of each row's own; not 1 minus FVU",
    ),
    (
        "explained_variance_saebench",
        "legacy SAEBench explained variance",
        "{:.4f}",
        "as SAEBench 0.6 has it: changes with the units, and may exceed 1",
    ),
)

HEADLINES = {"fvu": "FVU", "delta_ce": "delta CE", "kl": "KL"}
"""What the verdict speaks of."""

BETTER = "better at equal L0"
"""Which is not where the figures beside it were measured, unless both have the same."""


def rows_of(measured: Sequence[dict]) -> list[tuple[str, str, str, str]]:
    """The table's rows: those that were measured of at least one."""
    return [row for row in ROWS if any(row[0] in m for m in measured)]


def cell(metrics: dict, key: str, form: str) -> str:
    """A figure, and its 95% interval in brackets where it has one."""
    if key not in metrics:
        return "-"
    value, interval = metrics[key], metrics.get("ci95", {}).get(key)
    if isinstance(value, dict):
        value, interval = value["value"], value["ci95"]
    if value is None:
        return "not stated"
    return form.format(value) + (f" [{', '.join(form.format(end) for end in interval)}]" if interval else "")


def prefix_rows(metrics: dict) -> list[tuple[str, list[str]]]:
    """The table's rows of one transcoder, by prefix: each is a transcoder by itself."""
    each = list(metrics["per_prefix"].values())
    return [(label, [cell(m, key, form) for m in each]) for key, label, form, _ in rows_of(each)]


def summary(measured: Sequence[dict], store: Store, winners: dict[str, str]) -> str:
    """The table as plain text, with the rows and the store that it was measured on."""
    names = [m["name"] for m in measured]
    widths = [max(26, len(name)) for name in names]
    lines = [" " * 28 + "  ".join(name.rjust(w) for name, w in zip(names, widths, strict=True))]
    for key, label, form, _ in rows_of(measured):
        cells = [cell(m, key, form).rjust(w) for m, w in zip(measured, widths, strict=True)]
        lines.append(label.ljust(28) + "  ".join(cells) + winner_note(winners.get(key), measured))
    for m in measured:
        if len(m.get("fvu_per_prefix", ())) > 1:
            prefixes = ", ".join(f"{size}: {value:.4f}" for size, value in m["fvu_per_prefix"].items())
            lines.append(f"FVU by prefix of {m['name']}: {prefixes}")
        lines += [f"WARNING, {warning}" for warning in m.get("warnings", ())]
    lines.append(provenance(measured[0], store))
    return "\n".join(lines) + "\n"


def winner_note(winner: str | None, measured: Sequence[dict]) -> str:
    if winner is None:
        return ""
    names = {"ours": measured[0]["name"], "google": measured[1]["name"]}
    return f"   {BETTER}: {names[winner]}" if winner in names else f"   {winner}"


def provenance(metrics: dict, store: Store) -> str:
    recipe, target = store.manifest.recipe, store.target
    across = "" if target is None else f" to layer {target.manifest.recipe.layer} (store {target.fingerprint})"
    said = [
        f"{metrics['n_rows']:,} held-out rows of {metrics['n_documents']:,} documents "
        f"({metrics['n_outliers']:,} outliers) of {recipe.model} layer {recipe.layer}{across} "
        f"on {recipe.dataset}; store {store.fingerprint}"
    ]
    if "n_predictions" in metrics:
        documents = metrics["n_prediction_documents"]
        said.append(f"CE and KL: {metrics['n_predictions']:,} predictions in {documents:,} of the documents")
    drawn = (
        "documents (words for absorption, letters for splitting, tokens for probes)"
        if "absorption" in metrics
        else "documents"
    )
    return ". ".join([*said, f"In brackets: 95% intervals by bootstrap over {drawn}"])


def markdown(measured: Sequence[dict], store: Store, winners: dict[str, str]) -> str:
    """The verdict and the table as Markdown, for papers and issues."""

    def line(*cells: str) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [verdict(measured, winners), "", line("held-out metric", *(m["name"] for m in measured), BETTER)]
    lines.append(line(*["---"] * (len(measured) + 2)))
    for key, label, form, _ in rows_of(measured):
        better = winner_note(winners.get(key), measured).strip().removeprefix(f"{BETTER}: ")
        lines.append(line(label, *(cell(m, key, form) for m in measured), better))
    for m in measured:
        if len(m.get("per_prefix", ())) > 1:
            lines += ["", line(f"{m['name']}, by prefix", *m["per_prefix"]), line(*["---"] * (len(m["per_prefix"]) + 1))]
            lines += [line(label, *cells) for label, cells in prefix_rows(m)]
    return "\n".join([*lines, "", provenance(measured[0], store), ""])


def write_report(path: Path, measured: Sequence[dict], store: Store, run: Path, comparison: dict) -> None:
    """Writes the page: verdict, table, figures, worst tokens, what was measured and what was checked."""
    winners = comparison.get("winners", {})
    figures = [
        Figure(
            "fvu_by_prefix", "FVU by prefix",
            "Each prefix is a transcoder by itself; a longer one should never be worse.", by_prefix(measured),
        ),
        Figure(
            "fvu_by_l0", "FVU against L0",
            f"Down and to the left is better. Lines, by threshold and by rank: on the first {FRONTIER_ROWS:,} rows. Dotted "
            "(prefixes) and level (trivial predictors): on all.",
            frontier(measured),
        ),
        Figure(
            "delta_ce_by_l0", "Delta CE against L0",
            "What its output in the MLP's place costs the model, threshold moved; bars: 95% intervals.",
            frontier_ce(measured),
        ),
        Figure(
            "fvu_by_position", "FVU by position", "Of the token in the model's context.",
            by_band(measured, "fvu_by_position", "position"),
        ),
        Figure(
            "fvu_by_token_rank", "FVU by frequency", "Tokens by how common they are in these rows; 1 is the commonest.",
            by_band(measured, "fvu_by_token_rank", "rank of the token"),
        ),
        Figure(
            "explained_by_dimension", "Explained variance by output dimension",
            "Of each dimension by itself, the best first; below 0 its mean would be the better prediction.",
            by_dimension(measured),
        ),
        Figure(
            "density", "How often features fire",
            "Share of the held-out rows, on a log scale; those that never fire are left out.", densities(measured),
        ),
        Figure(
            "decoder_cosines", "How alike decoder rows are", "Each latent's largest |cosine| with another.",
            cosines(measured),
        ),
        Figure("training", "Training", "FVU of training batches.", curves(run)),
    ]  # fmt: skip
    rows = [
        (label, note, [cell(m, key, form) for m in measured], winners.get(key))
        for key, label, form, note in rows_of(measured)
    ]
    nested = [m for m in measured if len(m.get("per_prefix", ())) > 1]
    shown, no_words = worded(measured, store)
    write_page(
        path, "report.html", figures, title=" against ".join(m["name"] for m in measured[:2]),
        verdict=verdict(measured, winners), measured=shown, rows=rows, provenance=provenance(measured[0], store),
        recipe=store.manifest.recipe, fingerprint=store.fingerprint, checks=comparison.get("checks", []),
        no_words=no_words, better=BETTER, prefixes=[(m["name"], list(m["per_prefix"]), prefix_rows(m)) for m in nested],
    )  # fmt: skip


def worded(measured: Sequence[dict], store: Store) -> tuple[list[dict], str]:
    """The same with the worst rows in words; or, where the tokenizer cannot be had, in numbers, and why."""
    if not any(m.get("worst_rows") for m in measured):
        return list(measured), ""
    from harvest.text import load_tokenizer, token_texts

    reason = ""
    try:
        texts = partial(token_texts, load_tokenizer(store.manifest.recipe))
    except ValueError as error:
        reason, texts = str(error), _numbers
    return [m | {"worst_rows": in_words(m.get("worst_rows", []), texts)} for m in measured], reason


def _numbers(ids: list[int]) -> list[str]:
    return [f"#{number} " for number in ids]


def verdict(measured: Sequence[dict], winners: dict[str, str]) -> str:
    """The comparison in two sentences at most."""
    ours = measured[0]
    first = f"{ours['name']} leaves {ours['fvu']:.1%} of the variance unexplained at a mean L0 of {ours['l0_mean']:.1f}"
    if len(measured) == 1:
        return f"{first}, with {ours['dead_fraction']:.2%} dead features."
    other = measured[1]
    return f"{first}; {other['name']} leaves {other['fvu']:.1%} at {other['l0_mean']:.1f}. {judgement(measured, winners)}"


def judgement(measured: Sequence[dict], winners: dict[str, str]) -> str:
    """Who is better in what at equal L0, in one sentence."""
    names, found = {"ours": measured[0]["name"], "google": measured[1]["name"]}, dict[str, list[str]]()
    for key, label in HEADLINES.items():
        if key in winners:
            found.setdefault(winners[key], []).append(label)
    if not {"tie", *names} & found.keys():
        return f"No winner is named ({winners['fvu']})."
    at_equal_l0 = measured[1]["matched"]
    said = []
    for outcome, labels in found.items():
        in_what = " and ".join(labels)
        if outcome == "tie":
            said.append(f"{in_what}: a tie")
        elif outcome in names:
            low, high = sorted(abs(end) for end in at_equal_l0["minus_ours"]["fvu"]["ci95"])
            by = f" (FVU by {low:.4f} to {high:.4f})" if "FVU" in labels else ""
            said.append(f"{in_what}: {names[outcome]} is better{by}")
        else:
            said.append(f"{in_what}: {outcome}")
    l0 = " against ".join(f"{each:.1f}" for each in at_equal_l0["l0"])
    return f"At equal L0 ({l0}), by 95% intervals of the differences, paired by document: {'; '.join(said)}."
