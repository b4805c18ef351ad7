"""Everything that is measured of some transcoders on one store, at their own L0 and at an equal one.

The language model and the probes are imported where they are wanted: that takes seconds, and most measurements do not.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from evaluate.compare.checks import checks_of, fvu_by_view
from evaluate.compare.config import CompareConfig
from evaluate.compare.frontier import CE_FACTORS, FACTORS, Point, ThresholdTuner, at_equal_l0, variants
from evaluate.compare.trivial import Linear, fit, least_squares, low_rank, predict_mean, ranks_near
from evaluate.config import EvaluateConfig
from evaluate.metrics.accumulate import Accumulator, measure_rows
from evaluate.metrics.results import JUDGED_BY_ROW, ByDocument, result_of, sums_of, with_intervals
from evaluate.metrics.semantics import semantics
from evaluate.metrics.worst import worst_rows
from evaluate.rows import FRONTIER_ROWS, RowStatistics
from store.devices import resolve_device
from store.shards.reader import Store, check_shards
from store.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from harvest.model import LanguageModel

log = logging.getLogger(__name__)

OF_LATENTS = {
    "l0_per_prefix", "fvu_per_prefix", "per_prefix", "l0_median", "l0_percentiles", "dead_features", "dead_fraction",
    "density_histogram", "density_median", "redundancy", "mean_max_cosine", "max_cosine_histogram", "d_sae", "k",
    "best_scale", "worst_rows",
}  # fmt: skip
"""What is said of latents: left out of the figures of trivial predictors."""


def measure(config: EvaluateConfig, store: Store, transcoders: Sequence[Transcoder]) -> list[dict]:
    """Metrics of every transcoder on the held-out rows, with `name`, `source`, `architecture`, `view` and `warnings`.

    With a CompareConfig, and two or more, also: in the second one's `matched` its paired difference from the first at
    equal L0, the frontier of both, what they cost the language model, and, last, the same of trivial predictors (marked
    `trivial`).
    """
    device = resolve_device(config.device)
    if isinstance(config, CompareConfig) and len(transcoders) > 1:
        model = open_language_model(store, device) if config.sequences else None
        if config.check:
            check_shards(store, "heldout")
        results = _Comparison(config, store, transcoders, device, model).measured()
    else:
        if config.check:
            check_shards(store, "heldout")
        accumulators, facts = measure_rows(transcoders, store, "heldout", config.batch_rows, device)
        results = results_of(accumulators, facts, store, ByDocument.of(accumulators, facts))
    for transcoder, result in zip(transcoders, results[: len(transcoders)], strict=True):
        label(result, transcoder)
        result["fvu_by_view"] = fvu_by_view(transcoder, store, device)
        result |= with_prefixes(result, semantics(transcoder, store, device))
        result["warnings"] = [check["detail"] for check in checks_of(result, store) if not check["holds"]]
        for warning in result["warnings"]:
            log.warning("%s", warning)
    return results


def results_of(accumulators: Sequence[Accumulator], facts: RowStatistics, store: Store, table: ByDocument) -> list[dict]:
    """The figures of each with intervals, and the rows that it reconstructs worst."""
    results = [
        result_of(a, facts, store) | {"split": "heldout", "worst_rows": worst_rows(a, facts, store)} for a in accumulators
    ]
    with_intervals(table, results)
    return results


def with_prefixes(result: dict, found: dict[str, dict]) -> dict:
    """Adds figures by prefix to a result's; those of the whole dictionary are handed back."""
    for size, figures in found.items():
        result["per_prefix"][size] |= figures
    return found[str(result["d_sae"])]


def label(result: dict, transcoder: Transcoder) -> None:
    c = transcoder.config
    result |= {
        "name": c.name, "source": c.source, "architecture": c.architecture, "view": c.view,
        "trained_on": c.store_fingerprint,
    }  # fmt: skip


def open_language_model(store: Store, device: torch.device) -> "LanguageModel":
    """The model of a store, opened before anything is measured, so that one that cannot be had is told at once."""
    from evaluate.model.splice import open_model

    return open_model(store, device)


class _Comparison:
    """A first transcoder (ours), a second one, and others, on the same rows."""

    def __init__(
        self, config: CompareConfig, store: Store, transcoders: Sequence[Transcoder], device: torch.device,
        model: "LanguageModel | None",
    ) -> None:  # fmt: skip
        self.config, self.store, self.device, self.model = config, store, device, model
        self.dials = [ThresholdTuner(transcoder, store, device) for transcoder in transcoders[:2]]
        self.own = [*(dial.transcoder for dial in self.dials), *transcoders[2:]]
        self.moved = self.dials[0].at(self.dials[1].l0)
        """Ours at the L0 of the second; itself where that is as near, None where it cannot be reached."""
        like = transcoders[0].config
        self.variants = variants(self.dials) if config.frontier else [[], []]
        self.l0s: list[float] = []
        """Of every variant, on the rows of the frontier."""
        self.linear = fit(store, like, device) if config.trivial else None
        self.trivial = trivial_predictors(self.linear, self.dials[0], store, device) if self.linear else []

    @property
    def extra(self) -> list[Transcoder]:
        """What has to be measured beside the subjects for the comparison at equal L0."""
        return [] if self.moved is None or self.moved is self.own[0] else [self.moved]

    def measured(self) -> list[dict]:
        results = self.on_rows()
        second = results[1]
        if self.config.frontier:
            self.along_the_frontier(results)
        if self.model:
            self.in_the_model(results, self.model)
        if self.config.probes:
            add_probes(results[: len(self.own)], self.own, self.store, self.model)
        for predictor, result in zip(self.trivial, results[len(self.own) :], strict=True):
            label(result, predictor)
            result |= {"trivial": True, "warnings": []}
            silent = predictor.config.d_sae == 1
            for name in (OF_LATENTS | ({"l0_mean"} if silent else set())) & result.keys():
                del result[name]
        if "matched" not in second:
            log.warning("no equal L0 could be reached: no winner will be named")
        return results

    def on_rows(self) -> list[dict]:
        """Everything from the shards alone, in one pass."""
        subjects = [*self.own, *self.trivial]
        everyone = [*subjects, *self.extra]
        accumulators, facts = measure_rows(everyone, self.store, "heldout", self.config.batch_rows, self.device)
        table = ByDocument.of(accumulators, facts)
        results = results_of(accumulators[: len(subjects)], facts, self.store, table)
        if self.moved is None:
            return results
        ours, theirs = {0: results[0]}, results[1]
        if self.extra:
            ours[len(subjects)] = sums_of(accumulators[-1], facts)
        nearest = min(ours, key=lambda index: abs(ours[index]["l0_mean"] - theirs["l0_mean"]))
        if nearest == 0:
            self.moved = self.own[0]
        theirs["matched"] = {
            "l0": [each["l0_mean"] for each in (ours[nearest], theirs)],
            "fvu": [each["fvu"] for each in (ours[nearest], theirs)], "minus_ours": table.minus(1, nearest),
        }  # fmt: skip
        return results

    def along_the_frontier(self, results: list[dict]) -> None:
        """Adds `frontier` (L0 and FVU on the first rows) to the first two, threshold moved, and to the linear map, by
        rank; adds `at_equal_l0` to the second."""
        ranks = [factor * self.dials[0].l0 for factor in (1.0, *FACTORS)]
        nested = [low_rank(self.linear, self.own[0].config, ranks_near(ranks, self.linear))] if self.linear else []
        variants = [variant for group in self.variants for variant in group]
        accumulators, facts = measure_rows(
            [*(variant.transcoder for variant in variants), *nested], self.store, "heldout", self.config.batch_rows,
            self.device, limit=FRONTIER_ROWS,
        )  # fmt: skip
        found = [sums_of(a, facts) for a in accumulators]
        self.l0s = [each["l0_mean"] for each in found[: len(variants)]]
        table = ByDocument.of(accumulators, facts)
        first = len(self.variants[0])
        results[1]["at_equal_l0"] = {}
        for name in JUDGED_BY_ROW:
            curve = [Point(l0, table.statistic(index, name)) for index, l0 in enumerate(self.l0s)]
            results[1]["at_equal_l0"][name] = at_equal_l0(table, curve[:first], curve[first:], self._judged_l0s())
        points = [{"l0": l0, "fvu": each["fvu"]} for l0, each in zip(self.l0s, found[: len(variants)], strict=True)]
        results[0]["frontier"], results[1]["frontier"] = by_l0(points[:first]), by_l0(points[first:])
        for last in found[len(variants) :]:
            by_rank = zip(last["l0_per_prefix"].values(), last["fvu_per_prefix"].values(), strict=True)
            results[len(self.own) + 1]["frontier"] = [{"l0": l0, "fvu": fvu} for l0, fvu in by_rank]

    def _judged_l0s(self) -> list[float]:
        """Ours as it is, and the second one's."""
        return [self.l0s[0], self.l0s[len(self.variants[0])]]

    def in_the_model(self, results: list[dict], model: "LanguageModel") -> None:
        """Adds what each costs the language model, at its own L0, at the second one's, and along the frontier."""
        from evaluate.model.splice import splice

        flat = [(place, variant) for place, group in enumerate(self.variants) for variant in group]
        along = [index for index, (_, variant) in enumerate(flat) if variant.factor in CE_FACTORS]
        subjects = [*self.own, *self.trivial[1:]]
        places = [*range(len(self.own)), *([None] * bool(self.trivial)), *range(len(self.own), len(subjects))]
        jobs = [*subjects, *(flat[index][1].transcoder for index in along)]
        moved = len(jobs) if self.extra else 0
        spliced = splice([*jobs, *self.extra], self.store, model, self.config.sequences, self.config.every_prefix)
        for place, result in zip(places, results, strict=True):
            result |= spliced.figures(place)
            for size, figures in {} if place is None else spliced.by_prefix(place).items():
                result["per_prefix"][size] |= figures
        if self.moved is not None:
            results[1]["matched"]["minus_ours"] |= spliced.minus(1, moved)
        if not self.config.frontier:
            return
        own = [0, len(self.variants[0])]
        measured = [*zip(own, (0, 1), strict=True), *((index, len(subjects) + n) for n, index in enumerate(along))]
        for name in ("delta_ce", "kl"):
            curves: list[list[Point]] = [[], []]
            for index, job in measured:
                curves[flat[index][0]].append(Point(self.l0s[index], spliced.statistic(job, name)))
            results[1]["at_equal_l0"][name] = at_equal_l0(spliced, curves[0], curves[1], self._judged_l0s())
            for result, curve in zip(results[:2], curves, strict=True):
                points = [{"l0": point.l0} | spliced.estimate(point.statistic) for point in curve]
                result[f"frontier_{name}"] = by_l0(points)


def bos_of(store: Store) -> int:
    """The token with which every row of a store begins."""
    return int(store.array(store.manifest.shards[0], "tokens")[0, 0])


def by_l0(points: list[dict]) -> list[dict]:
    return sorted(points, key=lambda point: point["l0"])


def trivial_predictors(linear: Linear, ours: ThresholdTuner, store: Store, device: torch.device) -> list[Transcoder]:
    """The mean (first: splicing measures it as an ablation), the best linear map of as many dimensions as ours has active
    latents, and of all dimensions."""
    like = ours.transcoder.config
    ranked = low_rank(linear, like, ranks_near([ours.l0], linear))
    return [predict_mean(store, like, device), ranked, least_squares(linear, like)]


def add_probes(results: list[dict], transcoders: Sequence[Transcoder], store: Store, model: "LanguageModel | None") -> None:
    """Adds absorption, splitting, sparse_probing and tpp, by prefix too; with the model also absorption_chanin."""
    from evaluate.metrics.probes import Fitted, probe_all
    from evaluate.metrics.tasks import fit_and_test
    from harvest.text import load_tokenizer

    fit_on, test = fit_and_test(store, load_tokenizer(store.manifest.recipe).convert_ids_to_tokens)
    prompted = None
    if model:
        from evaluate.model.spelling import in_prompts

        prompted = in_prompts(model, test, bos_of(store))
    fitted: Fitted = {}
    for transcoder, result in zip(transcoders, tqdm(results, desc="probes", unit="transcoder"), strict=True):
        found = {
            str(size): probe_all(transcoder.prefix(size), store.norm, fit_on, test, fitted, prompted)
            for size in transcoder.config.prefix_sizes
        }
        result |= with_prefixes(result, found)
