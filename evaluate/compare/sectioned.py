"""A comparison section by section: rows, frontiers, latents, probes, the language model; each is saved as it ends.

The language model and the probes are imported where they are wanted: that takes seconds, and most measurements do not.
"""

import logging
from collections.abc import Sequence

import torch

from evaluate.compare.beside import Beside
from evaluate.compare.config import CompareConfig
from evaluate.compare.frontier import CE_FACTORS, variants
from evaluate.compare.passes import ComparisonPasses, OnFrontier
from evaluate.compare.progress import Progress, ProgressFile, SavedPoint
from evaluate.compare.sections import add_latents, add_probes, probes_tokenizer
from evaluate.metrics.matched import PARTS
from evaluate.metrics.measurement import Measurement
from store.counts import duration
from store.errors import Refused
from store.shards.reader import Store, check_shards
from store.transcoders.transcoder import Transcoder

SECTIONS = ("rows", "frontier", "latents", "probes", "language_model")
"""In the order in which they are measured: what takes minutes comes last."""
log = logging.getLogger(__name__)


class SectionedComparison:
    """The sections of a comparison.

    A section that cannot be measured costs only itself: its reason goes into `not_measured` of the results.
    """

    def __init__(
        self,
        config: CompareConfig,
        store: Store,
        transcoders: Sequence[Transcoder],
        device: torch.device,
        progress: ProgressFile | None,
        beside: Beside,
    ) -> None:
        """Opens what the sections need, the language model and the tokenizer. Refused where they cannot be had."""
        self.config = config
        self.store = store
        self.device = device
        self.progress = progress
        self.earlier = progress.read() if progress else None
        self.done = list(self.earlier.done) if self.earlier else []
        wanted = [name for name in self._wanted() if name not in self.done]
        self.tokenizer = probes_tokenizer(store) if "probes" in wanted else None
        self.model = None
        seconds = 0.0
        if config.sequences and {"probes", "language_model"} & set(wanted):
            from evaluate.model.splice import check_model, open_model

            self.model = open_model(store, device)
            seconds = check_model(store, self.model)
        if config.check and "rows" in wanted:
            check_shards(store, "heldout")
        self.passes = ComparisonPasses(config, store, transcoders, device, beside)
        if "language_model" in wanted:
            self._announce_model(seconds)
        if "probes" in wanted:
            prefixes = sum(len(t.config.prefix_sizes) for t in self.passes.probed)
            log.info("the probes take minutes: a bar counts their %d prefixes; --no-probes leaves them out", prefixes)

    def _wanted(self) -> list[str]:
        """The sections in their order, the longest last."""
        optional = {
            "frontier": self.config.frontier,
            "probes": self.config.probes,
            "language_model": self.config.sequences > 0,
        }
        return [name for name in SECTIONS if optional.get(name, True)]

    def _announce_model(self, seconds: float) -> None:
        """Says how long the language model will take, before anything is measured."""
        nested = [len(t.config.prefix_sizes) if self.config.every_prefix else 1 for t in self.passes.transcoders]
        once = len(self.passes.nulls) + len(self.passes.siblings)
        moved = 2 * len(CE_FACTORS) * self.config.frontier
        outputs = 3 + sum(nested) + once + len(self.passes.trivial[1:]) + moved + len(self.passes.extra)
        held_out = sum(shard.n_sequences for shard in self.store.manifest.of_split("heldout"))
        n = min(self.config.sequences, held_out)
        log.info(
            "delta CE and KL will take about %s (%d outputs in %d sequences); --sequences 0 leaves them out, a smaller "
            "number takes its share of the time",
            duration(seconds * outputs * n),
            outputs,
            n,
        )

    def measured(self) -> list[Measurement]:
        """The result of each transcoder, then of each trivial predictor. What was measured before is taken up."""
        results = self._taken_up() if self.earlier else []
        for name in self._wanted():
            if name in self.done:
                continue
            try:
                missing = self._section(name, results)
            except (Refused, torch.OutOfMemoryError) as error:
                if name == "rows":
                    raise
                missing = {name: str(error)}
            for part, reason in missing.items():
                log.warning("not measured: %s: %s", PARTS[part], reason)
            for index in range(len(self.passes.own)):
                if missing:
                    results[index] = results[index].plus(not_measured=results[index].not_measured | missing)
            self.done.append(name)
            self._save(results)
        if results[1].matched is None:
            log.warning("no equal L0 could be reached: no winner will be named")
        return results

    def _section(self, name: str, results: list[Measurement]) -> dict[str, str]:
        """Measures one section and adds it to the results; returns why parts of it could not be measured."""
        if name == "rows":
            results += self.passes.on_rows()
        elif name == "frontier":
            self.passes.along_the_frontier(results)
        elif name == "latents":
            for index, transcoder in enumerate(self.passes.own):
                seeds = self.passes.siblings_of(index)
                results[index] = add_latents(results[index], transcoder, self.store, self.device, seeds)
        elif name == "probes":
            assert self.tokenizer is not None
            return add_probes(results, self.passes.probed, self.store, self.tokenizer, self.model)
        else:
            assert self.model is not None
            self.passes.in_the_model(results, self.model)
        return {}

    def _save(self, results: Sequence[Measurement]) -> None:
        if self.progress is None:
            return
        points = tuple(SavedPoint(side=point.side, factor=point.factor, l0=point.l0) for point in self.passes.points)
        self.progress.write(
            Progress(
                key=self.progress.key,
                done=tuple(self.done),
                results=tuple(results),
                points=points,
                matched_as_it_is=self.passes.moved is self.passes.own[0],
            )
        )

    def _taken_up(self) -> list[Measurement]:
        """The results of an interrupted comparison, whose transcoders are made again."""
        assert self.earlier is not None
        log.info("taking up what was measured before: %s", ", ".join(PARTS[name] for name in self.done))
        made = [{variant.factor: variant.transcoder for variant in group} for group in variants(self.passes.dials)]
        for point in self.earlier.points:
            self.passes.points.append(OnFrontier(point.side, point.factor, made[point.side][point.factor], point.l0))
        if self.earlier.matched_as_it_is:
            self.passes.moved = self.passes.own[0]
        return list(self.earlier.results)
