"""One dictionary while it is trained: its weights, optimizer, log and checkpoint, from the first step to the artefact."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.results import sums_of
from store.disk.files import write_text
from store.errors import Refused
from store.layout import CHECKPOINT, CONFIG, TRAIN_CONFIG, WEIGHTS, snapshot_folder
from store.loader.batches import Batch
from store.shards.origin import write_origin
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from train import checkpoint
from train.config import TrainConfig
from train.export import calibrate, export
from train.follow import Following
from train.log import HeldoutRecord, MeasuringTime, Record, TrainingLog
from train.snapshots import Collector, snapshot_of, uncollected
from train.step.memory import MEASURED_ROWS
from train.step.module import StepResult, TrainingTranscoder
from train.step.optimizer import learning_rate, make_optimizer, train_step
from train.step.sharded import ShardedForward
from train.step.watch import SPIKE
from train.writer import CheckpointWriter

NONFINITE = "nonfinite.safetensors"
"""Checkpoint from before the first step whose loss was not finite."""
MISSED = (
    "because the threshold moved too far in one step to find the k * rows largest latents; try a lower --lr or a warm-up"
)
log = logging.getLogger(__name__)


def already_trained(folder: Path, run: dict) -> Transcoder | None:
    """The finished transcoder of this run, if there is one. Refused when the folder holds a run with other options."""
    if not (folder / WEIGHTS).exists() or not (folder / CONFIG).exists():
        return None
    if not (folder / TRAIN_CONFIG).exists():
        raise Refused(f"{folder} holds a transcoder that was not trained here, which would be lost; give another RUN")
    saved = checkpoint.in_todays_words(json.loads((folder / TRAIN_CONFIG).read_text()))
    if saved != run:
        raise Refused(
            f"{folder} holds a run with other options: {checkpoint.differences(saved, run)}; "
            "give those options, or another RUN"
        )
    return Transcoder.load(folder)


class Run:
    """A run from its checkpoint, if there is one, or from the start. Only rank 0 writes."""

    def __init__(self, config: TrainConfig, store: Store, module: TrainingTranscoder, identity: dict) -> None:
        self.config = config
        self.store = store
        self.module = module
        self.identity = identity
        self.folder = config.run_directory
        self.ranks = module.ranks
        self.path = self.folder / CHECKPOINT
        self.stepped = False
        self.optimizer = make_optimizer(module, config.peak_lr)
        self.done = checkpoint.load(self.path, module, self.optimizer, identity) if self.path.exists() else 0
        if self.done:
            log.info("continuing %s at step %d of %d", self.folder, self.done, config.n_steps)

    def open(self, position: int, collector: Collector, bar: bool = True) -> None:
        """Makes the folder and opens the log; `position` places its bar, if it has one, among those of a sweep. Snapshots
        go to the collector, also those that an interrupted training left without features."""
        if self.ranks.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / TRAIN_CONFIG, json.dumps(self.identity, indent=1) + "\n")
        self.log = TrainingLog(self.config, self.done, position, silent=self.ranks.rank != 0, bar=bar)
        self.collector = collector
        if self.config.features_every and self.ranks.rank == 0:
            for snapshot in uncollected(self.store.directory, self.config, self.done):
                collector.add(snapshot)
        self.last_time = time.perf_counter()
        self.last_step = self.done
        self.waited = 0.0

    def step(self, batch: Batch, waited: float, measuring: MeasuringTime, in_time: bool) -> None:
        """One step on the batch. Refused, with the state saved, when the loss is not finite.

        in_time: whether time allows a measurement on held-out rows, which counts where nobody chose the steps.
        """
        lr = learning_rate(self.done, self.config)
        result = train_step(self.module, self.optimizer, batch.source, batch.target, lr, self.done)
        if not self.stepped:
            self.log.first_step_done()
            self.stepped = True
        self.done += 1
        self.waited += waited
        self.log.bar.update(self.config.batch_rows)
        measure = self.config.is_measured(self.done) and (in_time or self.config.heldout_every is not None)
        if self.config.is_logged(self.done):
            figures, per_prefix = self._figures(result)
            if figures["stopped"]:
                self._stop()
            record = self._record(figures, per_prefix)
            heldout = None
            if measure:
                with measuring.spent():
                    heldout = self._heldout()
            self.log.write(record, heldout)
            if measure:
                self.log.histograms(self._by_latent(), self.done)
        elif batch.source.device.type == "cpu" and self.module.watch.stopped:
            self._stop()
        if self.config.features_every and self.done % self.config.features_every == 0:
            self._snapshot()
        self.collector.poll()

    def save(self, writer: CheckpointWriter) -> None:
        """Has the checkpoint written while training goes on."""
        checkpoint.save(self.path, self.module, self.optimizer, self.done, self.identity, writer.submit)

    def finish(self, rows: Store, writer: CheckpointWriter) -> Transcoder:
        """Calibrates on the training rows of a store, writes the artefact, and removes the checkpoint."""
        threshold = calibrate(self.module, rows, self.done, self.folder)
        transcoder = self._export(str(self.folder), threshold).to("cpu")
        if self.ranks.rank == 0:
            write_origin(self.folder, self.store, grows=self.config.follow)
            transcoder.save(self.folder)
            writer.wait()  # a checkpoint that it still writes would come back
            self.path.unlink(missing_ok=True)
            self.log.artefact(self.folder)
        return transcoder

    def _export(self, source: str, threshold: Tensor | None = None, gather: bool = True) -> Transcoder:
        """The artefact as it is now; it names the stores of both its sides. Frees gradients, which nobody reads again."""
        self.optimizer.zero_grad(set_to_none=True)
        made = export(self.module, self.store.fingerprint, source, threshold, gather)
        target = self.store.target
        if target is None:
            return made
        both = {"target_layer": self.config.target_layer, "target_store_fingerprint": target.fingerprint}
        return replace(made, config=made.config.model_copy(update=both))

    def _stop(self) -> None:
        step = int(self.module.watch.first_bad)
        rows = self.config.batch_rows
        path = self.folder / NONFINITE
        checkpoint.save(path, self.module, self.optimizer, step - 1, self.identity)
        raise Refused(
            f"the loss is not finite at step {step} (rows {(step - 1) * rows} to {step * rows} of the stream); weights as "
            f"they were before that step are in {path}; try a lower --lr than {self.config.peak_lr}"
        )

    def _figures(self, result: StepResult) -> tuple[dict[str, float], list[float]]:
        """The step's figures by name, and FVU by prefix, brought to the host by one copy: each waits for the device."""
        watch = self.module.watch
        named = {
            "loss": result.loss,
            "l2_loss": result.l2_loss,
            "aux_loss": result.aux_loss,
            "sparsity_loss": result.sparsity_loss,
            "l0": result.l0,
            "stopped": watch.stopped,
            "worst": watch.worst,
            "misses": watch.misses,
            "dead": self.ranks.latents.sum(self.module.dead.sum()),
        }
        scalars = torch.stack([figure.double() for figure in named.values()])
        numbers = torch.cat([scalars, result.fvu_per_prefix.double()]).tolist()
        return dict(zip(named, numbers, strict=False)), numbers[len(named) :]

    def _record(self, figures: dict[str, float], per_prefix: list[float]) -> Record:
        """What the log says of the last step; warns of spikes and of steps that changed nothing."""
        worst = figures["worst"]
        misses = int(figures["misses"])
        self.module.watch.begin_again()
        if worst > SPIKE:
            log.warning("%s: a loss of %.1f times its recent mean just before step %d", self.folder, worst, self.done)
        if misses:
            log.warning("%s: %d steps before step %d changed nothing, %s", self.folder, misses, self.done, MISSED)
        now = time.perf_counter()
        elapsed = now - self.last_time
        rows = (self.done - self.last_step) * self.config.batch_rows
        record = Record(
            step=self.done,
            tokens=self.done * self.config.batch_rows,
            loss=figures["loss"],
            l2_loss=figures["l2_loss"],
            aux_loss=figures["aux_loss"],
            sparsity_loss=figures["sparsity_loss"],
            loss_spike=worst,
            missed_steps=misses,
            fvu=per_prefix[-1],
            fvu_min=min(per_prefix),
            fvu_max=max(per_prefix),
            fvu_mean=sum(per_prefix) / len(per_prefix),
            fvu_per_prefix=per_prefix,
            l0_norm=figures["l0"],
            dead_features_percentage=self._dead_percentage(int(figures["dead"])),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            rows_per_second=rows / elapsed,
            data_wait_share=self.waited / elapsed,
        )
        self.last_time = now
        self.last_step = self.done
        self.waited = 0.0
        return record

    def _dead_percentage(self, n_dead: int) -> float | None:
        """None while fewer rows were trained on than a latent must be silent for."""
        dead = 100 * (n_dead / self.config.d_sae)
        return dead if self.done * self.config.batch_rows >= self.config.n_dead_after else None

    def _snapshot(self) -> None:
        """Saves the transcoder as it is, as a run of its own, and has its features collected: stages can be compared."""
        folder = snapshot_folder(self.folder, self.done)
        made = self._export(str(folder)).to("cpu")
        if self.ranks.rank == 0:
            write_origin(folder, self.store)
            made.save(folder)
            self.collector.add(snapshot_of(folder, self.store.directory, self.config))

    def _heldout(self) -> HeldoutRecord:
        """The same figures as `evaluate metrics`, on the first held-out rows; training state is only read."""
        now = self._export("", gather=False)
        limit = self.config.heldout_rows
        forward = partial(ShardedForward, shared=self.ranks.latents, k=self.module.activation.k, sizes=self.config.prefixes)
        [measured], facts = measure_rows(
            [now],
            self.store,
            "heldout",
            min(MEASURED_ROWS, limit),
            self.module.encoder.device,
            limit,
            quiet=True,
            forward=forward,
            cost=False,
        )
        found = sums_of(measured, facts)
        return HeldoutRecord(
            heldout_fvu=found.fvu,
            heldout_l0=found.l0_mean,
            heldout_dead_fraction=self._share(measured.fired[-1] == 0),
            heldout_fvu_per_prefix=list(found.fvu_per_prefix.values()),
        )

    def _share(self, latents: Tensor) -> float:
        """Share of the dictionary's latents for which a boolean by latent, of those held here, is true."""
        return self.ranks.latents.sum(latents.sum()).item() / self.config.d_sae

    def _by_latent(self) -> dict[str, Tensor]:
        """Values to draw histograms of: tokens since each latent fired, norms of encoders, biases, thresholds."""
        module = self.module
        own = {
            "tokens_since_fired": module.tokens_since_fired,
            "encoder_norm": module.encoder.norm(dim=1),
            "b_enc": module.b_enc,
            "threshold": module.activation.fold(module.b_enc).threshold,
        }
        return {name: self.ranks.whole(values, self.config.d_sae) for name, values in own.items()}


@dataclass(frozen=True)
class Strand:
    """The runs that are trained on one store, from one stream of its batches."""

    runs: Sequence[Run]
    store: Store
    following: Following | None = None

    @property
    def first(self) -> int:
        """The steps that all of its runs have done."""
        return min(run.done for run in self.runs)
