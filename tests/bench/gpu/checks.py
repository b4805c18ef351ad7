"""Whether the numbers are right: against float64, and the same bits in two runs."""

import itertools
from typing import get_args

import torch

from tests.bench.gpu.bench import LR, Bench, Sizes, Table, using
from tests.bench.gpu.kernels import error
from tests.train import reference
from train.config import Activation, TrainConfig
from train.step.module import WAIT_EVERY
from train.step.optimizer import train_step

CHECKED = {"d_sae": 2048, "k": 32, "batch_rows": 1024}
"""Sizes of the dense float64 reference: large enough that operators take the paths that they take in earnest."""
ACCURACY = {"float32": 1e-5, "bfloat16": 1e-3}
"""Relative errors that are right, by the precision of candidates: AuxK multiplies in TF32 with the second."""
BATCHES = 3
"""Batches that are tried. A latent within float32's rounding of the threshold may be kept where float64 drops it, once in
some batches; a fault shows in all."""
FIRST = WAIT_EVERY - 10
"""Number of the first step of two runs, so that ten of them wait and the others do not."""


def _config(bench: Bench, activation: str, **changes: str) -> TrainConfig:
    sizes = {"d_sae": bench.sizes.d_sae, "k": bench.sizes.k, "batch_rows": bench.sizes.batch} if bench.small else CHECKED
    return bench.config(activation=activation, **(sizes | changes))


def _rows(bench: Bench, config: TrainConfig) -> Bench:
    """The bench with the batches of a smaller config."""
    sizes = Sizes(bench.sizes.d, config.d_sae, config.k, config.batch_rows, bench.sizes.steps)
    return Bench(sizes, bench.device, bench.folder, bench.small)


@torch.no_grad()
def numerics(bench: Bench) -> Table:
    """The largest relative error of a step's gradients against a dense float64 step, waiting and not, with dead latents."""
    rows = []
    for kernels, activation, candidates in itertools.product(bench.kernels(), get_args(Activation), ACCURACY):
        for steady in (False, True) if activation in ("batchtopk", "topk") else (False,):
            with using(kernels):
                worst, largest = _worst(bench, _config(bench, activation, candidates=candidates), steady)
            verdict = "right" if largest < ACCURACY[candidates] else "WRONG"
            step = "steady" if steady else "waits"
            rows.append((kernels, activation, candidates, step, worst, largest, verdict))
    return Table(("kernels", "activation", "candidates", "step", "worst gradient", "relative error", ""), rows)


def _worst(bench: Bench, config: TrainConfig, steady: bool) -> tuple[str, float]:
    """The gradient that is off most, and by how much, in the best of some batches."""
    found = []
    for number in range(1, BATCHES + 1):
        errors = _errors(bench, config, steady, number)
        worst = max(errors, key=errors.__getitem__)
        found.append((worst, errors[worst]))
        if errors[worst] < ACCURACY[config.candidates]:
            break
    return min(found, key=lambda pair: pair[1])


def _errors(bench: Bench, config: TrainConfig, steady: bool, number: int) -> dict[str, float]:
    """Relative errors of one step's loss and gradients, on the batch of this number."""
    module, _ = bench.module(config)
    ready = _rows(bench, config).batches(number + 1)
    first, batch = ready[0], ready[number]
    module.step_gradients(first.source, first.target)  # thresholds and biases find their start
    n_dead = config.d_sae // 50
    module.b_enc[-n_dead:] = -1e3
    if config.activation == "jumprelu":
        module.activation.log_threshold[-n_dead:] = 5.0
    module.tokens_since_fired[-n_dead:] = config.n_dead_after
    dead = module.dead.clone()
    x, y = module.normalise(batch.source, batch.target)
    with torch.enable_grad():
        loss, expected = reference.step(module, x, y, dead, list(config.prefixes))
    step = 0
    if steady:
        module.step_gradients(batch.source, batch.target, 0)
        module.tokens_since_fired[-n_dead:] = config.n_dead_after
        step = 100_001
        module.may_sync = lambda step: False
        module.listed_dead = dead.nonzero().squeeze(1)
    result = module.step_gradients(batch.source, batch.target, step)
    errors = {name: error(p.grad, expected[name]) for name, p in module.named_parameters() if p.grad is not None}
    return errors | {"loss": abs(float(result.loss) / float(loss) - 1)}


@torch.no_grad()
def determinism(bench: Bench) -> Table:
    """Whether two runs of the same steps end with the same bits."""
    rows = []
    n_steps = 14 if bench.small else 40
    for kernels in bench.kernels():
        for activation in get_args(Activation):
            config = bench.config(activation=activation)
            with using(kernels):
                one, other = (_trained(bench, config, n_steps) for _ in range(2))
            differing = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
            rows.append((kernels, activation, n_steps, "the same bits" if not differing else f"DIFFER: {differing}"))
            del one, other
    return Table(("kernels", "activation", "steps", "two runs"), rows)


def _trained(bench: Bench, config: TrainConfig, n_steps: int) -> dict[str, torch.Tensor]:
    module, optimizer = bench.module(config)
    ready = bench.batches(4)
    module.tokens_since_fired[-config.d_sae // 20 :] = config.n_dead_after
    for step in range(FIRST, FIRST + n_steps):
        batch = ready[step % len(ready)]
        train_step(module, optimizer, batch.source, batch.target, LR, step)
    return module.state_dict()
