"""The interpretability report: collected features and weights -> tables and a map, as Markdown and HTML."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from evaluate.features.config import AnalyzeConfig
from evaluate.features.dots import common_tokens, direction_map, firing_map, named, numbered
from evaluate.features.maps import coactive, communities
from evaluate.features.summary import read_summary
from evaluate.notes.file import read_notes
from evaluate.report.figure import Figure
from evaluate.report.page import write_page
from evaluate.text import share, visible
from store.disk.files import write_text
from store.disk.suggest import command_line
from store.errors import Refused
from store.layout import ANALYSIS, FEATURES, REPORT, REPORT_MARKDOWN, SAMPLES
from store.transcoders.layouts import load_run
from store.transcoders.transcoder import Transcoder

SHOWN = 10

DENSE = 0.1
"""Features that fire on more than this share of the rows are called dense."""

ENOUGH = 10
"""Documents in which a feature must fire for its consistency to be ranked."""

COLUMNS = [
    "feature",
    "prefix",
    "density",
    "top_token",
    "example",
    "near_decoder",
    "near_coactive",
    "finer",
    *(f"contexts.list.element.{name}" for name in ("quantile", "token", "start", "tokens")),
]
"""What the report needs of features.parquet."""

Section = tuple[str, str, Sequence[str], list[list[str]]]
"""Title, note, heads of the columns, rows of a table."""

TEMPLATES = Path(__file__).parent / "templates"


def analyze(config: AnalyzeConfig) -> Path:
    """Writes report.md and report.html; returns their folder. Refused when the run's features have not been collected."""
    samples = config.run_directory / SAMPLES
    summary = read_summary(samples)
    if summary is None:
        collect = command_line("evaluate", "features", run=config.run_directory)
        raise Refused(f"{config.run_directory} has no features yet; collect them with {collect}")
    transcoder = load_run(config.run_directory)
    rows = read_rows(samples / FEATURES)
    for latent, note in read_notes(config.run_directory).items():
        if latent < len(rows):
            rows[latent]["name"] = note.name
    with tqdm(total=3, desc="communities and two maps", unit="part") as bar:
        graph = coactive(rows)
        found, modularity = communities(graph)
        bar.update()
        by_writing = direction_map(transcoder, rows)
        bar.update()
        maps = [by_writing, firing_map(graph, found, rows)]
        bar.update()
    sections = [
        frequency(rows),
        by_prefix(rows, transcoder),
        groups(rows, "near_decoder", config.alike, "decoder rows"),
        groups(rows, "near_coactive", config.together, "firing patterns"),
        firing_communities(found, modularity, rows),
        hierarchy(rows),
        *interpretable(rows),
    ]
    subject = Subject(
        name=summary.name,
        model=summary.model,
        layer=summary.layer,
        dataset=summary.dataset,
        split=summary.split,
        rows=summary.rows,
        store_fingerprint=summary.store_fingerprint,
    )
    return write_analysis(config.run_directory / ANALYSIS, subject, sections, maps)


def read_rows(path: Path) -> list[dict]:
    """Every feature, with its consistency and the number of its strongest contexts in place of the contexts."""
    file = pq.ParquetFile(path)
    rows = []
    for number in tqdm(range(file.num_row_groups), desc="reading features", unit="group"):
        table = file.read_row_group(number, columns=COLUMNS)
        rows += with_consistency(table.drop_columns("contexts").to_pylist(), table["contexts"].combine_chunks())
    return rows


def with_consistency(rows: list[dict], contexts: pa.ListArray) -> list[dict]:
    """Rows with `documents`, the number of their strongest contexts, and `consistency`, the share of these that fire on
    the commonest word (NaN without contexts)."""
    every = contexts.flatten()
    strongest = every.field("quantile").to_numpy() == 0
    owner = np.repeat(np.arange(len(rows)), contexts.value_lengths().to_numpy())[strongest]
    tokens = every.field("tokens")
    middle = tokens.offsets.to_numpy()[:-1] + every.field("token").to_numpy() - every.field("start").to_numpy()
    words = [word.strip().lower() for word in tokens.values.take(middle[strongest]).to_pylist()]
    found: list[Counter] = [Counter() for _ in rows]
    for latent, word in zip(owner.tolist(), words, strict=True):
        found[latent][word] += 1
    return [
        row | {"consistency": share_of_commonest(mine), "documents": mine.total()}
        for row, mine in zip(rows, found, strict=True)
    ]


def share_of_commonest(words: Counter) -> float:
    return words.most_common(1)[0][1] / words.total() if words else float("nan")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an analysis looked at, as its first line says."""

    name: str
    model: str
    layer: int | str
    """One layer, or several with commas."""
    dataset: str
    split: str
    rows: int
    store_fingerprint: str


def write_analysis(folder: Path, subject: Subject, sections: Sequence[Section], maps: Sequence[Figure]) -> Path:
    """Writes report.md, report.html and the maps as PNG; returns the folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = lambda text: text.replace("|", "\\|")
    write_text(folder / REPORT_MARKDOWN, environment.get_template("analysis.md").render(subject=subject, sections=sections))
    title = f"{subject.name}: what the features do"
    page = folder / REPORT
    write_page(page, "analysis.html", maps, folder=TEMPLATES, title=title, subject=subject, sections=sections)
    return folder


def frequency(rows: Sequence[dict]) -> Section:
    """Dead, rare and dense features."""
    density = np.array([row["density"] for row in rows])
    dense = np.flatnonzero(density > DENSE)
    table = [
        ["dead (never fired on these rows)", f"{(density == 0).sum():,}", ""],
        [f"dense (on more than {DENSE:.0%})", f"{len(dense):,}", ", ".join(numbered(rows[i]) for i in dense[:SHOWN])],
        [
            "between",
            f"{len(rows) - (density == 0).sum() - len(dense):,}",
            f"median {share(float(np.median(density)))} of rows",
        ],
    ]
    return "How often features fire", "Rows are those of the collection.", ("kind", "features", ""), table


def by_prefix(rows: Sequence[dict], transcoder: Transcoder) -> Section:
    """Weight norms, alignment of encoder and decoder, density and consistency, by the prefix that adds a latent."""
    decoder = transcoder.W_dec.norm(dim=1).numpy()
    encoder = transcoder.W_enc.norm(dim=0).numpy()
    aligned = alignment(transcoder)
    prefix = np.array([row["prefix"] for row in rows])
    density = np.array([row["density"] for row in rows])
    consistent = np.array([row["consistency"] for row in rows])
    table = []
    for size in sorted(set(prefix.tolist())):
        mine = prefix == size
        cosine = "widths differ" if aligned is None else f"{aligned[mine].mean():.3f}"
        known = consistent[mine & ~np.isnan(consistent)]
        table.append(
            [
                f"{size:,}",
                f"{mine.sum():,}",
                f"{encoder[mine].mean():.3g}",
                f"{decoder[mine].mean():.3g}",
                cosine,
                share(float(np.median(density[mine]))),
                f"{known.mean():.0%}" if len(known) else "not known",
            ]
        )
    heads = ("prefix", "adds", "encoder norm", "decoder norm", "mean cosine", "median density", "consistency")
    return "Weights by prefix", "Cosine is that of a latent's encoder column and decoder row.", heads, table


def alignment(transcoder: Transcoder) -> np.ndarray | None:
    """Cosine of each latent's encoder column with its decoder row; None where their widths differ."""
    if transcoder.config.d_in != transcoder.config.d_out:
        return None
    return torch.nn.functional.cosine_similarity(transcoder.W_enc.T, transcoder.W_dec, dim=1).numpy()


def groups(rows: Sequence[dict], relation: str, least: float, what: str) -> Section:
    """Latents joined by scores of at least `least` with one of their nearest ones."""
    found = components(rows, relation, least)
    table = [
        [str(len(group)), ", ".join(numbered(rows[i]) for i in group[:SHOWN]), named(rows[group[0]])]
        for group in found[:SHOWN]
    ]
    joined = sum(map(len, found))
    note = f"{len(found):,} groups hold {joined:,} of {len(rows):,} features; joined where the cosine is at least {least}."
    return f"Groups by {what}", note, ("size", "features", "for example"), table


def components(rows: Sequence[dict], relation: str, least: float) -> list[list[int]]:
    """Connected groups of two or more latents, the largest first."""
    pairs = [(row["feature"], item["feature"]) for row in rows for item in row[relation] if item["score"] >= least]
    one, other = np.array(pairs, int).reshape(-1, 2).T
    graph = scipy.sparse.csr_array((np.ones(len(pairs)), (one, other)), shape=(len(rows), len(rows)))
    label = connected_components(graph, directed=False)[1]
    order = np.argsort(label, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
    return sorted((part.tolist() for part in parts if len(part) > 1), key=len, reverse=True)


def firing_communities(found: Sequence[Sequence[int]], modularity: float, rows: Sequence[dict]) -> Section:
    """Features that fire with each other more than with the rest: how many, on what, and the most frequent of them."""
    table = []
    for group in found[: 2 * SHOWN]:
        common = ", ".join(f"{token} ({n})" for token, n in common_tokens(group, rows))
        most = sorted(group, key=lambda i: -rows[i]["density"])[:6]
        table.append([f"{len(group):,}", common, ", ".join(numbered(rows[i]) for i in most)])
    note = f"Leiden's, of each feature's nearest by firing: {len(found):,} hold {sum(map(len, found)):,} of {len(rows):,} "
    note += f"features; modularity {modularity:.2f} (0 is chance). Numbers count the features with that top token."
    heads = ("size", "top tokens", "most frequent features")
    return "Communities of features that fire together", note, heads, table


def hierarchy(rows: Sequence[dict]) -> Section:
    """The strongest refinements: a finer latent that fires almost only where a coarser one does."""
    pairs = [(item["score"], row["feature"], item["feature"], item["both"]) for row in rows for item in row["finer"]]
    pairs.sort(reverse=True)
    table = [[f"{s:.2f}", str(both), named(rows[coarse]), named(rows[fine])] for s, coarse, fine, both in pairs[:SHOWN]]
    note = f"{len(pairs):,} pairs; the score is P(coarse fires | fine fires) less P(coarse fires)."
    return "Which finer features refine which coarser ones", note, ("score", "rows", "coarse", "fine"), table


def interpretable(rows: Sequence[dict]) -> list[Section]:
    """The most and least consistent features that fired in enough documents."""
    scored = [(row["consistency"], row) for row in rows if row["documents"] >= ENOUGH]
    scored.sort(key=lambda pair: (-pair[0], pair[1]["feature"]))
    return [consistency_table("Most consistent", scored[:SHOWN]), consistency_table("Least consistent", scored[-SHOWN:])]


def consistency_table(title: str, scored: Sequence[tuple[float, dict]]) -> Section:
    note = "Consistency: share of the strongest contexts that fire on the same word, case and spaces aside."
    table = [[f"{share:.0%}", named(row), visible(row["top_token"])] for share, row in scored]
    return title, note, ("consistency", "feature", "top token"), table
