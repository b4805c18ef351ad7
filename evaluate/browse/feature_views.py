"""The content of a feature's page and of the coarse-to-fine page, from features.parquet."""

import math
import random
from dataclasses import dataclass

import numpy as np

from evaluate.browse.charts import BarChart, bars
from evaluate.browse.folder import RunFolder
from evaluate.features.reader import Features
from evaluate.model.control import Control, control_of
from evaluate.text import brief

SHADES = 9
"""Shades of a token's background; 0 is none."""

SPLIT_COSINE = 0.3
"""Least decoder cosine at which a finer latent is shown as split from a coarse one."""

WITHIN = 0.1
"""Least P(coarse fires | fine fires) - P(coarse fires) at which a finer latent is shown as firing within a coarse one."""

ALIKE = 100
"""Latents of the nearest densities, from which a random one is drawn."""

QUANTILE_NAMES = {5: "strongest fifth", 4: "fourth fifth", 3: "middle fifth", 2: "second fifth", 1: "weakest fifth"}

RELATIONS = {
    "near_decoder": ("Writes the same direction", "cosine of decoder rows"),
    "near_coactive": ("Fires on the same tokens", "rows on which both fire, as a cosine"),
    "finer": ("Finer latents that fire within it", "P(this fires | that fires) less P(this fires)"),
}
"""By column of features.parquet: title and note of its list."""

Word = tuple[str, int, str, bool]
"""Token, shade 0 to SHADES, activation as text, and whether it is the middle one."""


@dataclass(frozen=True, kw_only=True)
class FeatureView:
    """The content of a feature's page."""

    f: dict
    """Its row of features.parquet; each context also has `words`."""
    groups: list[tuple[str, str, list[dict]]]
    """Title, note and contexts of each group that has contexts."""
    near: list[tuple[str, str, list[dict]]]
    """Title, note and related features of each relation."""
    chart: BarChart | None
    """Histogram of activations; None for a feature that never fires."""
    n_features: int


def feature_view(features: Features, latent: int) -> FeatureView:
    """The content of a feature's page. NotFound when there is no such latent."""
    features.check(latent)
    [record] = features.records([latent])
    for context in record["contexts"]:
        context["words"] = shaded(context, record["max_activation"])
    near = []
    for column, (title, note) in RELATIONS.items():
        near.append((title, note, [with_row(features, item) for item in record[column]]))
    return FeatureView(
        f=record,
        groups=context_groups(record["contexts"]),
        near=near,
        chart=bars(record["histogram"]["edges"], record["histogram"]["counts"]),
        n_features=len(features),
    )


def random_latent(features: Features, latent: int) -> int | None:
    """Another latent, drawn at random from the hundred that fire about as often; None where no other fires."""
    density = features.columns["density"]
    alive = np.flatnonzero((density > 0) & (np.arange(len(density)) != latent))
    if not len(alive):
        return None
    apart = np.abs(np.log(density[alive]) - np.log(max(density[latent], density[alive].min())))
    alike = alive[np.argsort(apart, kind="stable")[:ALIKE]]
    return int(random.choice(alike))


def intervene_command(run: RunFolder, latent: int, control: Control | None) -> str:
    """The command that ablates a latent, and its control where there is one, to be copied; empty without weights."""
    if not run.has_weights:
        return ""
    beside = "" if control is None else " --control"
    return f"make intervene RUN={run.folder} ARGS='--text \"...\" --ablate {latent}{beside}'"


def control_in(features: Features, latent: int) -> Control | None:
    """The control that `intervene` draws for a latent by default; None where it has none."""
    return control_of(features.columns["density"], features.columns["mean_activation"], latent)


def context_groups(contexts: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """Title, note and contexts: the strongest first, then the samples by quantile. Empty groups are left out."""
    groups = [("Strongest contexts", "one a document", [context for context in contexts if context["quantile"] == 0])]
    for quantile, name in QUANTILE_NAMES.items():
        samples = [context for context in contexts if context["quantile"] == quantile]
        groups.append((f"Drawn at random: {name}", "of its activations", samples))
    return [group for group in groups if group[2]]


def with_row(features: Features, item: dict) -> dict:
    """A related feature with its own plain columns beside the score."""
    return item | features.brief(item["feature"])


def branch(features: Features, record: dict) -> dict:
    """A coarse latent with its finer latents: those that fire within it, and those split from it by decoder."""
    root = features.brief(record["feature"])
    within = [with_row(features, item) for item in record["finer"] if item["score"] >= WITHIN]
    split = [with_row(features, item) for item in record["near_decoder"] if item["score"] >= SPLIT_COSINE]
    return {"root": root, "within": within, "split": [item for item in split if item["prefix"] > root["prefix"]]}


def shaded(context: dict, largest: float) -> list[Word]:
    """The words of a context, shaded by activation; `largest` has the darkest shade."""
    middle = context["token"] - context["start"]
    words = []
    for index, (token, activation) in enumerate(zip(context["tokens"], context["activations"], strict=True)):
        shade = math.ceil(SHADES * activation / largest) if activation and largest else 0
        words.append((token, min(shade, SHADES), brief(activation) if activation else "", index == middle))
    return words
