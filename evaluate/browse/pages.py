"""The browser's pages: a query -> HTML. The server and the static export call the same functions."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2

from evaluate.browse.feature_views import (
    SPLIT_COSINE,
    WITHIN,
    branch,
    control_in,
    feature_view,
    intervene_command,
    random_latent,
)
from evaluate.browse.folder import RunFolder, find_runs, open_named_run, run_folders
from evaluate.browse.links import Links
from evaluate.browse.map_graph import BOX_HEIGHT, BOX_WIDTH, graph_view
from evaluate.browse.map_views import latent_map, map_or_problem
from evaluate.browse.run_views import fvu_by_prefix, spark, training_curves
from evaluate.browse.sides import int_or, open_side, share_or
from evaluate.browse.texts import TEXT_LENGTH
from evaluate.features.reader import SORTS, NotFound
from evaluate.labels import shown_in
from evaluate.notes.file import EMPTY, NAME_LENGTH, NOTE_LENGTH, Note
from evaluate.text import brief, share, visible

TREE_ROWS = 20
"""Coarse latents on one page of the server."""

EXPORTED_TREE_ROWS = 10 * TREE_ROWS
"""Coarse latents on the only page of a static site."""


STABLES = {1.0: "recurs in every other seed", 0.5: "recurs in half of them", 0.001: "recurs in one of them"}
"""Least share of the other seeds in which a latent recurs, as the table of features offers it."""


LIMITS = {"name": NAME_LENGTH, "note": NOTE_LENGTH, "text": TEXT_LENGTH}
"""Characters that may be typed."""

STAR = "star"

MARKED = {STAR: "starred", "any": "with a star, a name or a note"}
"""Which features the table shows by what people gave to them."""


class Pages:
    """Pages over one results folder. `links` decides how they refer to each other."""

    def __init__(self, results: Path, links: Links, notes: bool = True) -> None:
        self.results = results
        self.links = links
        self.shows_notes = notes
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment = self.environment
        environment.globals |= {"site": links, "to": links.to, "static": links.static, "brief": brief, "shown_in": shown_in}
        environment.globals["notes_of"] = self.notes_of
        environment.filters |= {"visible": visible, "share": share}

    def render(self, template: str, **values: object) -> str:
        return self.environment.get_template(template).render(**values)

    def open_run(self, name: str) -> RunFolder:
        """The run of a name. NotFound unless there is one."""
        return open_named_run(self.results, name)

    def notes_of(self, run: RunFolder) -> Mapping[int, Note]:
        """By latent, its star, name and note, where pages show them."""
        return run.notes if self.shows_notes else {}

    def told(self, run: RunFolder, words: str) -> list[int]:
        """Latents whose name or note holds the words; none without words."""
        features = len(run.features())
        return [n for n, note in self.notes_of(run).items() if words and n < features and note.holds(words)]

    def runs(self, query: Mapping[str, str]) -> str:
        """Every run whose name holds the words of `q`, sorted by name or by a metric."""
        words = query.get("q", "").lower()
        by = query.get("sort", "name")
        descending = query.get("desc") == "1"
        runs = [run for run in find_runs(self.results).values() if words in f"{run.name} {run.title}".lower()]
        ordered = sorted_runs(runs, by, descending)
        several_stores = len({run.data for run in ordered if run.data}) > 1
        return self.render(
            "runs.html",
            runs=ordered,
            columns=[label for label in shown_in("runs") if any(label.key in run.figures for run in ordered)],
            results=self.results,
            q=query.get("q", ""),
            by=by,
            desc=descending,
            several_stores=several_stores,
            curves={run.name: spark(run) for run in ordered},
        )

    def run(self, name: str) -> str:
        """A run's metrics, curves and configuration."""
        run = self.open_run(name)
        run_map, problem = map_or_problem(self.results, run)
        return self.render(
            "run.html",
            run=run,
            curves=training_curves([run]),
            prefixes=fvu_by_prefix([run]),
            map=run_map,
            map_problem=problem,
        )

    def features(self, name: str, query: Mapping[str, str]) -> str:
        """The table of a run's features: searched by `q`, of one `prefix`, sorted by a column. NotFound for no column."""
        run = self.open_run(name)
        features = run.features()
        words = query.get("q", "").strip()
        descending = query.get("desc") == "1"
        prefix = int_or(query.get("prefix", ""), 0)
        by = query.get("sort", "match")
        if by == "match" and not words:
            by = "feature"
        if by not in (*SORTS, "match"):
            raise NotFound(f"features cannot be sorted by {by!r}; choose one of {', '.join(SORTS)}")
        stable = share_or(query.get("stable", ""), 0.0)
        notes = self.notes_of(run)
        noted = [latent for latent, note in notes.items() if latent < len(features)]
        marked = query.get("marked", "") if noted else ""
        among = [latent for latent in noted if notes[latent].star or marked != STAR] if marked in MARKED else None
        told = self.told(run, words)
        found = features.select(words, prefix, by, descending, stable, also=told, among=among)
        firing = found
        if words:
            fires = features.fires(words)
            fires[told] = True
            firing = found[fires[found]]
        everywhere = self.links.is_static or query.get("where") == "all" or not len(firing)
        chosen = found if everywhere else firing
        size = self.links.page_rows
        page, pages = page_of(query, len(chosen), size)
        rows = [features.brief(int(latent)) for latent in chosen[(page - 1) * size : page * size]]
        return self.render(
            "features.html",
            run=run,
            rows=rows,
            n=len(chosen),
            n_firing=len(firing),
            n_elsewhere=len(found) - len(firing),
            n_told=len(told),
            where="all" if everywhere and len(firing) else "",
            page=page,
            pages=pages,
            q=words,
            by=by,
            desc=descending,
            prefix=prefix,
            prefixes=run.config.get("prefix_sizes", []),
            stable=stable,
            stables=STABLES if features.has_stability else {},
            marked=marked,
            markeds=MARKED if noted else {},
        )

    def feature(self, name: str, latent: int) -> str:
        """A feature's contexts, tokens and neighbours."""
        run = self.open_run(name)
        view = feature_view(run.features(), latent)
        note = self.notes_of(run).get(latent, EMPTY)
        other = None if self.links.is_static else random_latent(run.features(), latent)
        control = control_in(run.features(), latent)
        run_map, problem = map_or_problem(self.results, run)
        return self.render(
            "feature.html",
            run=run,
            other=other,
            control=control,
            command=intervene_command(run, latent, control),
            note=note,
            limits=LIMITS,
            mapped=latent_map(run_map, latent) if run_map else None,
            map_problem=problem,
            **vars(view),
        )

    def graph(self, name: str, latent: int) -> str:
        """The graph around a latent in the map that holds its run. NotFound without a map, or without such a latent."""
        run = self.open_run(name)
        run_map, problem = map_or_problem(self.results, run)
        if run_map is None:
            raise NotFound(problem or f"no map holds {run.name}; make one of several layers with make circuit")
        if not run_map.circuit.parts((run_map.layer, latent)):
            raise NotFound(f"there is no latent {latent} in the map {run_map.name}")
        return self.render(
            "graph.html",
            run=run,
            at=run_map,
            latent=latent,
            view=graph_view(run_map, latent),
            size=(BOX_WIDTH, BOX_HEIGHT),
            shares=latent_map(run_map, latent).shares,
        )

    def tree(self, name: str, query: Mapping[str, str]) -> str:
        """Coarse latents and, under each, the finer latents that fire within it or split from it."""
        run = self.open_run(name)
        features = run.features()
        sizes = sorted({int(size) for size in features.columns["prefix"]})
        prefix = int_or(query.get("prefix", ""), 0) or sizes[0]
        by = "density" if query.get("sort") == "density" else "feature"
        words = query.get("q", "").strip()
        coarse = features.select(words, prefix, by, by == "density", also=self.told(run, words))
        size = EXPORTED_TREE_ROWS if self.links.is_static else TREE_ROWS
        page, pages = page_of(query, len(coarse), size)
        latents = [int(latent) for latent in coarse[(page - 1) * size : page * size]]
        records = features.records(latents, ["feature", "finer", "near_decoder"])
        return self.render(
            "tree.html",
            run=run,
            branches=[branch(features, record) for record in records],
            within=WITHIN,
            split_cosine=SPLIT_COSINE,
            sizes=sizes[:-1] or sizes,
            prefix=prefix,
            page=page,
            pages=pages,
            n=len(coarse),
            q=words,
            by=by,
        )

    def compare(self, query: Mapping[str, str]) -> str:
        """Two sides, `a` and `b`: runs (RUN), prefixes (RUN@1024), features (RUN:42) or baselines (RUN@baseline)."""
        a = query.get("a", "")
        b = query.get("b", "")
        sides = [open_side(self.results, a), open_side(self.results, b)]
        runs = [side.run for side in sides if side]
        return self.render(
            "compare.html",
            sides=sides,
            a=a,
            b=b,
            names=list(run_folders(self.results)),
            curves=training_curves(runs) if len(runs) == 2 else None,
            prefixes=fvu_by_prefix(runs) if len(runs) == 2 else None,
        )

    def message(self, title: str, text: str) -> str:
        """The page of an error."""
        return self.render("message.html", title=title, text=text)


def sorted_runs(runs: list[RunFolder], by: str, descending: bool) -> list[RunFolder]:
    """Runs by name, layer 9 before layer 10, or by a metric; those without the metric come last. NotFound for no metric of
    the table."""
    if by == "name":
        return sorted(runs, key=lambda run: in_number_order(run.name), reverse=descending)
    keys = [label.key for label in shown_in("runs")]
    if by not in keys:
        raise NotFound(f"runs cannot be sorted by {by!r}; choose one of name, {', '.join(keys)}")
    measured = [run for run in runs if by in run.figures]
    rest = [run for run in runs if by not in run.figures]
    return sorted(measured, key=lambda run: run.figures[by], reverse=descending) + rest


def in_number_order(name: str) -> list[tuple[int, str]]:
    """A key by which names sort as people count: the numbers in them by value, the text between by its letters."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def page_of(query: Mapping[str, str], n_rows: int, page_rows: int) -> tuple[int, int]:
    """The page that is asked for, and how many there are; both at least 1."""
    pages = max(1, math.ceil(n_rows / page_rows))
    page = max(int_or(query.get("page", ""), 1), 1)
    return min(page, pages), pages
