"""One budget of active latents for several layers: a controller that moves k between them while they are trained.

Every few steps it measures in each layer what one more active latent would save of the language model's loss, and moves k
from where it saves little to where it saves much. All decisions lie in every layer's checkpoint, since those of one layer
depend on the others: a run that is behind repeats them, whatever the others have become.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from store.errors import Refused
from store.layers.parse import spell_layers
from store.loader.batches import Batch
from store.shards.metric import read_metric
from train.config import SETTLES, TrainConfig
from train.layers.saving import cost_matrix, saving_of
from train.layers.shares import bounds_of, moved, scaled, whole
from train.log import BudgetRecord
from train.run import Run, Strand, Watcher

BEGINS = 0.1
"""Share of the steps before the first update: before it savings say little."""
UPDATES = 100
"""Updates in a training, were it to update from its first step to its last."""
SLOWS = 0.9
"""Part by which updates are slower at the last than at the first."""
DECISIONS = "budget"
"""Name of the buffer that holds all updates: [updates, 2, layers] with shares and savings, NaN where none was made yet."""


def updates_of(config: TrainConfig) -> range:
    """The numbers of steps after which k is moved: none in the last fifth, so that thresholds settle."""
    every = max(1, config.n_steps // UPDATES)
    first = max(every, math.ceil(BEGINS * config.n_steps))
    return range(first, int(SETTLES * config.n_steps) + 1, every)


def empty_decisions(config: TrainConfig, n_layers: int) -> Tensor:
    """The buffer of a run that begins."""
    return torch.full((len(updates_of(config)), 2, n_layers), torch.nan, dtype=torch.float64)


class Budget(Watcher):
    """Holds the sum of k over the layers at `total`, and moves it towards equal savings."""

    def __init__(self, strands: Sequence[Strand], layers: Sequence[int], total: int) -> None:
        """Continues from the checkpoint that knows most. Refused where a layer is finished before the others are."""
        self.strands = strands
        self.layers = list(layers)
        self.total = total
        config = strands[0].runs[0].config
        self.updates = updates_of(config)
        self.bounds = bounds_of(total, len(layers), math.floor(config.d_sae / config.k_start))
        known = [run.module.get_buffer(DECISIONS).cpu().clone() for run in self.runs]
        self.decisions = min(known, key=lambda decisions: int(decisions.isnan().sum()))
        self.costs = {id(strand): _cost(strand) for strand in strands}
        self.measured: dict[int, float] = {}
        done = min(run.done for run in self.runs)
        missing = set(layers) - {run.config.layer for run in self.runs}
        if missing and done < config.n_steps and self.decisions.isnan().any():
            raise Refused(
                f"layer {spell_layers(sorted(missing))} of this budget is finished, but others are at step {done} of "
                f"{config.n_steps}, and their k would depend on it; delete the runs of all its layers, and train again"
            )
        self.apply(done)

    @property
    def runs(self) -> list[Run]:
        return [run for strand in self.strands for run in strand.runs]

    def number_of(self, done: int) -> int | None:
        """The number of the update that is made after so many steps; None where none is."""
        return self.updates.index(done) if done in self.updates else None

    def is_decided(self, number: int) -> bool:
        return not bool(self.decisions[number].isnan().any())

    def before(self, step: int, strand: Strand, batch: Batch) -> None:
        """Measures the layer's saving on rows that are still new to it, if an update follows the step."""
        number = self.number_of(step + 1)
        if number is None or self.is_decided(number):
            return
        module = strand.runs[0].module
        saving = saving_of(module, self.costs[id(strand)], batch.source, batch.target, step)
        self.measured[strand.runs[0].config.layer] = saving if math.isfinite(saving) else 0.0

    def after(self, step: int) -> None:
        """Moves k, if an update follows the step, as was decided before or by what was measured."""
        number = self.number_of(step + 1)
        if number is None:
            return
        if not self.is_decided(number):
            savings = [self.measured[layer] for layer in self.layers]
            pace = 1 - SLOWS * number / len(self.updates)
            shares = moved(self.shares_after(number - 1), savings, self.total, self.bounds, pace)
            self.decisions[number] = torch.tensor([shares, savings], dtype=torch.float64)
        self.apply(step + 1)

    def shares_after(self, number: int) -> list[float]:
        """The shares that an update decided; equal ones before the first."""
        if number < 0:
            return scaled([1.0] * len(self.layers), self.total, self.bounds)
        return self.decisions[number, 0].tolist()

    def apply(self, done: int) -> None:
        """Gives every run the k that holds after so many steps, and all decisions until then for its checkpoint."""
        number = sum(update <= done for update in self.updates) - 1
        ks = whole(self.shares_after(number), self.total)
        for run in self.runs:
            place = self.layers.index(run.config.layer)
            saving = None if number < 0 else float(self.decisions[number, 1, place])
            run.module.activation.k = ks[place]
            run.budget = BudgetRecord(k=ks[place], saving=saving)
            run.module.get_buffer(DECISIONS)[: number + 1] = self.decisions[: number + 1].to(run.module.decoder.device)


def _cost(strand: Strand) -> Tensor:
    config = strand.runs[0].config
    metric = read_metric(strand.store.target_side, config.target_site)
    assert metric is not None
    return cost_matrix(strand.runs[0].module, metric)
