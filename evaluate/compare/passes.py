"""What a comparison measures of all its transcoders together: on the cached rows, along the frontiers, in the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from evaluate.compare.beside import Beside
from evaluate.compare.config import CompareConfig
from evaluate.compare.frontier import CE_FACTORS, FACTORS, Point, ThresholdTuner, at_equal_l0, variants
from evaluate.compare.sections import by_prefix_with, identity, results_of
from evaluate.compare.trivial import Linear, fit, least_squares, low_rank, predict_mean, ranks_near
from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.measurement import (
    AtL0,
    FrontierEstimate,
    FrontierPoint,
    Matched,
    Measurement,
    OverSeeds,
)
from evaluate.metrics.results import ByDocument, sums_of, values_of, without_latents
from evaluate.rows import FIRST_ROWS
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from evaluate.model.splice import SpliceTable
    from harvest.model.language_model import LanguageModel


OURS = 0
OTHER = 1
"""Places of the two that are judged, among the transcoders and among the results."""


@dataclass(frozen=True)
class OnFrontier:
    """One of the judged two (side OURS or OTHER) at one setting of its threshold, as the first held-out rows show it."""

    side: int
    factor: float | None
    """Multiple of our L0; None for the transcoder as it is."""
    transcoder: Transcoder
    l0: float


@dataclass(frozen=True)
class Job:
    """A transcoder that is spliced into the language model, and what its figures are for."""

    transcoder: Transcoder
    result: int | None = None
    """Place of the result that gets the figures; None where only the frontier or the match uses them."""
    on_frontier: OnFrontier | None = None
    sibling: int | None = None
    """Place among the runs of other seeds."""


class ComparisonPasses:
    """A first transcoder (ours), a second one, and others, on the same rows, with what shows what chance does."""

    def __init__(
        self, config: CompareConfig, store: Store, transcoders: Sequence[Transcoder], device: torch.device, beside: Beside
    ) -> None:
        self.config = config
        self.store = store
        self.device = device
        self.dials = [ThresholdTuner(transcoder, store, device) for transcoder in transcoders[:2]]
        self.transcoders = [*(dial.transcoder for dial in self.dials), *transcoders[2:]]
        self.nulls = list(beside.nulls.values())
        self.null_kinds = list(beside.nulls)
        self.own = [*self.transcoders, *self.nulls]
        """Every transcoder that has a result, in the order of the results."""
        self.sibling_runs = [list(each) for each in beside.seeds]
        self.siblings = [t for each in beside.seeds for t in each.values()]
        """Runs of other seeds: those of ours, then those of the second one."""
        self.moved = self.dials[OURS].at(self.dials[OTHER].l0)
        """Ours at the L0 of the second; itself where that is as near, None where it cannot be reached."""
        self.points: list[OnFrontier] = []
        """Both frontiers, each from the transcoder as it is on; empty until they are measured."""
        self.linear = fit(store, transcoders[OURS].config, device) if config.trivial else None
        self.trivial = trivial_predictors(self.linear, self.dials[OURS], store, device) if self.linear else []

    @property
    def extra(self) -> list[Transcoder]:
        """What has to be measured beside the subjects for the comparison at equal L0."""
        return [] if self.moved is None or self.moved is self.own[OURS] else [self.moved]

    def siblings_of(self, place: int) -> list[Transcoder]:
        """The runs of other seeds of the transcoder at a place; only the first two have some."""
        n_ours = len(self.sibling_runs[OURS])
        return {OURS: self.siblings[:n_ours], OTHER: self.siblings[n_ours:]}.get(place, [])

    @property
    def probed(self) -> list[Transcoder]:
        """What probes are fitted to: nulls without their inner prefixes, since each prefix takes its time."""
        return [*self.transcoders, *(null.whole() for null in self.nulls)]

    @property
    def linear_place(self) -> int:
        """Where the results have the linear map of our L0 as rank: after the transcoders, the nulls and the mean."""
        return len(self.own) + 1

    def on_rows(self) -> list[Measurement]:
        """Everything from the shards alone, in one pass."""
        everyone = [*self.own, *self.trivial, *self.siblings, *self.extra]
        accumulators, facts = measure_rows(everyone, self.store, "heldout", self.config.batch_rows, self.device)
        table = ByDocument.of(accumulators, facts)
        results = results_of(accumulators[: len(self.own)], facts, self.store, table)
        results = [result.plus(identity(t)) for result, t in zip(results, self.own, strict=True)]
        for place, kind in enumerate(self.null_kinds, start=len(self.transcoders)):
            results[place] = results[place].plus(
                null=kind, name=f"chance: {kind.replace('_', ' ')}", worst_rows=(), warnings=()
            )
        for index, predictor in enumerate(self.trivial, start=len(self.own)):
            result = without_latents(accumulators[index], facts, self.store, "heldout", table, index)
            results.append(result.plus(identity(predictor), warnings=()))
        first = len(self.own) + len(self.trivial)
        others = [values_of(a, facts) for a in accumulators[first : first + len(self.siblings)]]
        self.add_seeds(results, others)
        if self.moved is None:
            return results
        theirs = results[OTHER]
        nearest = OURS
        ours = sums_of(accumulators[OURS], facts)
        if self.extra:
            moved = sums_of(accumulators[-1], facts)
            if abs(moved.l0_mean - theirs.l0_mean) < abs(ours.l0_mean - theirs.l0_mean):
                nearest = len(everyone) - 1
                ours = moved
        if nearest == OURS:
            self.moved = self.own[OURS]
        matched = Matched(
            l0=(ours.l0_mean, theirs.l0_mean), fvu=(ours.fvu, theirs.fvu), minus_ours=table.minus(OTHER, nearest)
        )
        results[OTHER] = theirs.plus(matched=matched)
        return results

    def add_seeds(self, results: list[Measurement], others: Sequence[Mapping[str, float]]) -> None:
        """Adds figures by seed to the first two.

        others: by run of another seed, figures by metric.
        """
        first = 0
        for side, runs in zip((OURS, OTHER), self.sibling_runs, strict=True):
            mine = others[first : first + len(runs)]
            first += len(runs)
            if not mine:
                continue
            values = {name: (results[side].value(name), *(each[name] for each in mine)) for name in mine[0]}
            before = results[side].seeds
            if before is not None:
                values = {**before.values, **values}
            names = (results[side].source, *runs)
            results[side] = results[side].plus(seeds=OverSeeds.model_validate({"runs": names, "values": values}))

    def along_the_frontier(self, results: list[Measurement]) -> None:
        """Adds `frontier` (L0 and FVU on the first rows) to the first two, threshold moved, and to the linear map, by
        rank; adds `at_equal_l0` to the second."""
        moved = [(side, variant) for side, group in enumerate(variants(self.dials)) for variant in group]
        ranks = [factor * self.dials[OURS].l0 for factor in (1.0, *FACTORS)]
        nested = [low_rank(self.linear, self.own[OURS].config, ranks_near(ranks, self.linear))] if self.linear else []
        accumulators, facts = measure_rows(
            [*(variant.transcoder for _, variant in moved), *nested],
            self.store,
            "heldout",
            self.config.batch_rows,
            self.device,
            limit=FIRST_ROWS,
        )
        found = [sums_of(a, facts) for a in accumulators]
        self.points = [
            OnFrontier(side, variant.factor, variant.transcoder, one.l0_mean)
            for (side, variant), one in zip(moved, found[: len(moved)], strict=True)
        ]
        table = ByDocument.of(accumulators, facts)
        read_off = {}
        for name in table.judged:
            curves: list[list[Point]] = [[], []]
            for index, point in enumerate(self.points):
                curves[point.side].append(Point(point.l0, table.statistic(index, name)))
            read_off[name] = at_equal_l0(table, curves[OURS], curves[OTHER], self._judged_l0s())
        results[OTHER] = results[OTHER].plus(at_equal_l0=read_off)
        for side in (OURS, OTHER):
            fvus = [
                FrontierPoint(l0=point.l0, fvu=one.fvu)
                for point, one in zip(self.points, found, strict=False)
                if point.side == side
            ]
            results[side] = results[side].plus(frontier=by_l0(fvus))
        for last in found[len(moved) :]:
            by_rank = zip(last.l0_per_prefix.values(), last.fvu_per_prefix.values(), strict=True)
            linear = tuple(FrontierPoint(l0=l0, fvu=fvu) for l0, fvu in by_rank)
            results[self.linear_place] = results[self.linear_place].plus(frontier=linear)

    def _judged_l0s(self) -> list[float]:
        """Ours as it is, and the second one's."""
        return [point.l0 for point in self.points if point.factor is None]

    def jobs(self) -> list[Job]:
        """Everything that is spliced: the transcoders as they are, linear maps, other seeds, points of the frontiers, ours
        matched.

        The first trivial predictor, the mean, is spliced as an ablation anyway.
        """
        as_they_are = [point for point in self.points if point.factor is None]
        jobs = []
        for index, transcoder in enumerate(self.own):
            point = as_they_are[index] if index < len(as_they_are) else None
            jobs.append(Job(transcoder if index < len(self.transcoders) else transcoder.whole(), index, point))
        for index, predictor in enumerate(self.trivial[1:], start=self.linear_place):
            jobs.append(Job(predictor, index))
        jobs += [Job(sibling.whole(), sibling=place) for place, sibling in enumerate(self.siblings)]
        jobs += [Job(point.transcoder, None, point) for point in self.points if point.factor in CE_FACTORS]
        return jobs + [Job(transcoder) for transcoder in self.extra]

    def in_the_model(self, results: list[Measurement], model: "LanguageModel") -> None:
        """Adds what each costs the language model, at its own L0, at the second one's, and along the frontier."""
        from evaluate.model.splice import splice

        jobs = self.jobs()
        transcoders = [job.transcoder for job in jobs]
        spliced = splice(transcoders, self.store, model, self.config.sequences, self.config.every_prefix)
        if self.trivial:
            results[len(self.own)] = results[len(self.own)].plus(spliced.figures(None))
        for index, job in enumerate(jobs):
            if job.result is not None:
                result = results[job.result].plus(spliced.figures(index))
                if result.per_prefix:
                    result = result.plus(per_prefix=by_prefix_with(result, spliced.by_prefix(index)))
                if result.minus_first is not None:
                    result = result.plus(minus_first=result.minus_first | spliced.minus(index, OURS))
                results[job.result] = result
        of_siblings = [
            {name: spliced.estimate(spliced.statistic(index, name)).value for name in ("delta_ce", "kl")}
            for index, job in enumerate(jobs)
            if job.sibling is not None
        ]
        self.add_seeds(results, of_siblings)
        matched = results[OTHER].matched
        if matched is not None:
            ours = len(jobs) - 1 if self.extra else OURS
            minus_ours = matched.minus_ours | spliced.minus(OTHER, ours)
            results[OTHER] = results[OTHER].plus(matched=matched.plus(minus_ours=minus_ours))
        if self.config.frontier:
            self.frontier_in_the_model(results, jobs, spliced)

    def frontier_in_the_model(self, results: list[Measurement], jobs: Sequence[Job], spliced: "SpliceTable") -> None:
        """Adds what each point of the frontiers costs, and reads both off at equal L0."""
        read_off: dict[str, tuple[AtL0, ...]] = dict(results[OTHER].at_equal_l0 or {})
        for name in ("delta_ce", "kl"):
            curves: list[list[Point]] = [[], []]
            for index, job in enumerate(jobs):
                if job.on_frontier is not None:
                    curves[job.on_frontier.side].append(Point(job.on_frontier.l0, spliced.statistic(index, name)))
            read_off[name] = at_equal_l0(spliced, curves[OURS], curves[OTHER], self._judged_l0s())
            for side, curve in enumerate(curves):
                points = [FrontierEstimate(l0=p.l0, **spliced.estimate(p.statistic).fields_set()) for p in curve]
                results[side] = results[side].plus(**{f"frontier_{name}": by_l0(points)})
        results[OTHER] = results[OTHER].plus(at_equal_l0=read_off)


OnCurve = TypeVar("OnCurve", FrontierPoint, FrontierEstimate)


def by_l0(points: Sequence[OnCurve]) -> tuple[OnCurve, ...]:
    """Points of a frontier in the order of their L0."""
    return tuple(sorted(points, key=lambda point: point.l0))


def trivial_predictors(linear: Linear, ours: ThresholdTuner, store: Store, device: torch.device) -> list[Transcoder]:
    """The mean (first: splicing measures it as an ablation), the best linear map of as many dimensions as ours has active
    latents, and of all dimensions."""
    like = ours.transcoder.config
    ranked = low_rank(linear, like, ranks_near([ours.l0], linear))
    return [predict_mean(store, like, device), ranked, least_squares(linear, like)]
