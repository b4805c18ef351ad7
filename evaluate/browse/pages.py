"""The browser's pages: what was asked for -> HTML. The server and the static export call the same functions."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import jinja2

from evaluate.browse.charts import bars, lines
from evaluate.browse.folder import RunFolder, find_runs, open_run, read_json, run_folders
from evaluate.browse.links import Links
from evaluate.features.reader import SORTS, Features, NotFound
from evaluate.labels import shown_in
from evaluate.text import brief, share, visible
from store.layout import COMPARISON_FOLDER, GOOGLE_METRICS

TREE_ROWS = 20

SHADES = 9

BASELINE = "baseline"
"""RUN@baseline stands for what RUN was compared with, Google's or another."""

SPLIT_COSINE, WITHIN = 0.3, 0.1
"""A finer latent is shown as split from a coarse one from this cosine of decoder rows on, as firing within it where the
coarse one fires so much more often than at chance."""


class Pages:
    """Pages over one results folder. `links` decides how they refer to each other."""

    def __init__(self, results: Path, links: Links) -> None:
        self.results, self.links = results, links
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.globals |= {"site": links, "to": links.to, "static": links.static, "brief": brief, "shown_in": shown_in}
        environment.filters |= {"visible": visible, "share": share}
        self.environment = environment

    def render(self, template: str, **values: object) -> str:
        return self.environment.get_template(template).render(**values)

    def run_named(self, name: str) -> RunFolder:
        """The run; NotFound unless it is one of those that a scan of the results folder finds."""
        folders = run_folders(self.results)
        if name not in folders:
            raise NotFound(f"there is no run {name!r} under {self.results}")
        return open_run(name, folders[name])

    def runs(self, query: Mapping[str, str]) -> str:
        words, by, descending = query.get("q", "").lower(), query.get("sort", "name"), query.get("desc") == "1"
        found = [run for run in find_runs(self.results).values() if words in f"{run.name} {run.title}".lower()]

        def key(run: RunFolder) -> tuple:
            value = run.name if by == "name" else (run.metrics or {}).get(by)
            return (value is None, value if value is not None else 0)

        known = sorted((r for r in found if not key(r)[0]), key=key, reverse=descending)
        ordered = known + [run for run in found if key(run)[0]]
        curves = {run.name: spark(run) for run in ordered}
        return self.render(
            "runs.html", runs=ordered, results=self.results, q=query.get("q", ""), by=by, desc=descending, curves=curves
        )

    def run(self, name: str) -> str:
        run = self.run_named(name)
        return self.render("run.html", run=run, curves=curves_of([run]), prefixes=prefixes_of([run]))

    def features(self, name: str, query: Mapping[str, str]) -> str:
        run = self.run_named(name)
        features = run.features()
        words = query.get("q", "").strip()
        by, descending = query.get("sort", "match"), query.get("desc") == "1"
        by = "feature" if by == "match" and not words else by
        prefix, page = whole(query.get("prefix", "")), max(whole(query.get("page", "")), 1)
        if by not in (*SORTS, "match"):
            raise NotFound(f"features cannot be sorted by {by!r}; choose one of {', '.join(SORTS)}")
        chosen = features.select(words, prefix, by, descending)
        size = self.links.page_rows
        pages = max(1, math.ceil(len(chosen) / size))
        page = min(page, pages)
        rows = [features.brief(int(latent)) for latent in chosen[(page - 1) * size : page * size]]
        return self.render(
            "features.html", run=run, rows=rows, n=len(chosen), page=page, pages=pages, q=words, by=by,
            desc=descending, prefix=prefix, prefixes=run.config.get("prefix_sizes", []),
        )  # fmt: skip

    def feature(self, name: str, latent: int) -> str:
        run = self.run_named(name)
        view = feature_view(run.features(), latent)
        return self.render("feature.html", run=run, **view)

    def tree(self, name: str, query: Mapping[str, str]) -> str:
        """Coarse latents and, under each, the finer ones that fire within it or split from it."""
        run = self.run_named(name)
        features = run.features()
        sizes = sorted({int(size) for size in features.columns["prefix"]})
        prefix = whole(query.get("prefix", "")) or sizes[0]
        by = "density" if query.get("sort") == "density" else "feature"
        coarse = features.select(query.get("q", "").strip(), prefix, by, by == "density")
        rows = 10 * TREE_ROWS if self.links.is_static else TREE_ROWS
        pages = max(1, math.ceil(len(coarse) / rows))
        page = min(max(whole(query.get("page", "")), 1), pages)
        shown = coarse[(page - 1) * rows : page * rows]
        columns = ["feature", "finer", "near_decoder"]
        branches = [branch(features, record) for record in features.records(list(map(int, shown)), columns)]
        return self.render(
            "tree.html", run=run, branches=branches, sizes=sizes[:-1] or sizes, prefix=prefix, page=page, pages=pages,
            n=len(coarse), q=query.get("q", ""), by=by,
        )  # fmt: skip

    def compare(self, query: Mapping[str, str]) -> str:
        """Runs (RUN), prefixes (RUN@1024), features (RUN:42), what a run was compared with (RUN@baseline) side by side."""
        sides = [self.side(query.get(which, "")) for which in "ab"]
        chosen = [side["run"] for side in sides if side]
        return self.render(
            "compare.html", sides=sides, a=query.get("a", ""), b=query.get("b", ""), names=list(run_folders(self.results)),
            curves=curves_of(chosen) if len(chosen) == 2 else None,
            prefixes=prefixes_of(chosen) if len(chosen) == 2 else None,
        )  # fmt: skip

    def side(self, text: str) -> dict | None:
        if not text:
            return None
        name, mark, number = text, "", ""
        if text not in run_folders(self.results):
            mark = ":" if ":" in text else "@"
            name, _, number = text.rpartition(mark)
        run = self.run_named(name)
        if mark == ":":
            return {"run": run, "kind": "feature", **feature_view(run.features(), whole(number, missing=-1))}
        metrics, itself = run.metrics or {}, None
        if mark == "@" and number == BASELINE:
            metrics = read_json(run.folder / COMPARISON_FOLDER / GOOGLE_METRICS)
            if metrics is None:
                raise NotFound(f"{name} has not been compared yet; make compare RUN={run.folder}")
            others = (other for other in find_runs(self.results).values() if other.has_features)
            itself = next((other for other in others if other.config.get("source") == metrics["source"]), None)
        elif mark == "@":
            if number not in metrics.get("fvu_per_prefix", {}):
                raise NotFound(f"{name} has no measured prefix {number!r}")
            size = int(number)
            metrics = {"fvu": metrics["fvu_per_prefix"][number], "l0_mean": metrics["l0_per_prefix"][number], "d_sae": size}
            if run.has_features:
                density = run.features().columns["density"][:size]
                metrics["dead_fraction"] = float((density == 0).mean())
        kind = BASELINE if number == BASELINE else "prefix" if mark else "run"
        return {"run": run, "kind": kind, "number": number, "metrics": metrics, "itself": itself}

    def message(self, title: str, text: str) -> str:
        return self.render("message.html", title=title, text=text)


def feature_view(features: Features, latent: int) -> dict:
    """Everything that a feature's page shows. NotFound when there is no such latent."""
    if not 0 <= latent < len(features):
        raise NotFound(f"there is no feature {latent}: this dictionary has 0 to {len(features) - 1}")
    [record] = features.records([latent])
    for context in record["contexts"]:
        context["words"] = shaded(context, record["max_activation"])
    groups = [("Strongest contexts", "one a document", [c for c in record["contexts"] if c["quantile"] == 0])]
    names = ("weakest fifth", "second fifth", "middle fifth", "fourth fifth", "strongest fifth")
    for quantile in range(5, 0, -1):
        found = [c for c in record["contexts"] if c["quantile"] == quantile]
        groups.append((f"Drawn at random: {names[quantile - 1]}", "of its activations", found))
    titles = {
        "near_decoder": ("Writes the same direction", "cosine of decoder rows"),
        "near_coactive": ("Fires on the same tokens", "rows shared, as a cosine"),
        "finer": ("Finer latents that fire within it", "how much more often this fires when they do, against chance"),
    }
    near = [(*titles[name], [item | features.brief(item["feature"]) for item in record[name]]) for name in titles]
    chart = bars(record["histogram"]["edges"], record["histogram"]["counts"])
    return {
        "f": record, "groups": [g for g in groups if g[2]], "near": near, "chart": chart, "n_features": len(features),
    }  # fmt: skip


def branch(features: Features, record: dict) -> dict:
    """A coarse latent with its finer ones: by conditional firing, then by decoder."""
    root = features.brief(record["feature"])
    within = [item | features.brief(item["feature"]) for item in record["finer"] if item["score"] >= WITHIN]
    split = [item | features.brief(item["feature"]) for item in record["near_decoder"] if item["score"] >= SPLIT_COSINE]
    return {"root": root, "within": within, "split": [item for item in split if item["prefix"] > root["prefix"]]}


def shaded(context: dict, most: float) -> list[tuple[str, int, str, bool]]:
    """(token, shade 0 to 9, activation in words, whether it is the middle one) of each token of a context."""
    middle = context["token"] - context["start"]
    out = []
    for place, (word, value) in enumerate(zip(context["tokens"], context["activations"], strict=True)):
        shade = math.ceil(SHADES * value / most) if value and most else 0
        out.append((word, min(shade, SHADES), brief(value) if value else "", place == middle))
    return out


def spark(run: RunFolder) -> str | None:
    chart = lines({"fvu": [(r["tokens"], r["fvu"]) for r in run.log if "fvu" in r]}, log_y=True)
    return chart["lines"]["fvu"] if chart else None


def curves_of(runs: list[RunFolder]) -> dict | None:
    """Training curves: of one run its best and worst prefix too."""
    if len(runs) == 1:
        names = {"all latents": "fvu", "worst prefix": "fvu_max", "mean of prefixes": "fvu_mean"}
        return lines({n: [(r["tokens"], r[k]) for r in runs[0].log if k in r] for n, k in names.items()}, log_y=True)
    return lines({n: [(r["tokens"], r["fvu"]) for r in run.log if "fvu" in r] for n, run in named(runs)}, log_y=True)


def named(runs: list[RunFolder]) -> Iterator[tuple[str, RunFolder]]:
    """Runs by what tells their names apart: the folders that all of them lie in are left out."""
    parts = [run.name.split("/") for run in runs]
    shared = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), min(map(len, parts)) - 1)
    return (("/".join(part[shared:]), run) for part, run in zip(parts, runs, strict=True))


def prefixes_of(runs: list[RunFolder]) -> dict | None:
    """FVU by prefix, where there is more than one."""
    measured = {name: (run.metrics or {}).get("fvu_per_prefix", {}) for name, run in named(runs)}
    series = {name: [(int(size), fvu) for size, fvu in each.items()] for name, each in measured.items() if each}
    return lines(series, log_x=True) if any(len(line) > 1 for line in series.values()) else None


def whole(text: str, missing: int = 0) -> int:
    """A number from a URL; anything else counts as missing."""
    return int(text) if text.isdecimal() and len(text) < 10 else missing
