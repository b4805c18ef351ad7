"""Whether the numbers are right: against float64, and the same bits in two runs."""

from typing import get_args

import torch

from tests.bench.gpu.bench import LR, Bench, Sizes, Table, using
from tests.bench.gpu.kernels import error
from tests.train import reference
from train.config import Activation
from train.step.module import TrainingTranscoder
from train.step.optimizer import train_step

CHECKED = {"d_sae": 2048, "k": 32, "batch_rows": 1024}
"""Sizes of the dense float64 reference: large enough that operators take the paths that they take in earnest."""
ACCURACY = 1e-4


def _config(bench: Bench, activation: str, **changes):
    sizes = {"d_sae": bench.sizes.d_sae, "k": bench.sizes.k, "batch_rows": bench.sizes.batch} if bench.small else CHECKED
    return bench.config(activation=activation, **(sizes | changes))


def _rows(bench: Bench, config) -> Bench:
    """The bench with the batches of a smaller config."""
    sizes = Sizes(bench.sizes.d, config.d_sae, config.k, config.batch_rows, bench.sizes.steps)
    return Bench(sizes, bench.device, bench.folder, bench.small)


@torch.no_grad()
def numerics(bench: Bench) -> Table:
    """The largest relative error of a step's gradients against a dense float64 step, waiting and not, with dead latents."""
    rows = []
    for kernels in bench.kernels():
        for activation in get_args(Activation):
            for steady in (False, True) if activation in ("batchtopk", "topk") else (False,):
                with using(kernels):
                    found = _errors(bench, activation, steady)
                worst = max(found, key=found.__getitem__)
                verdict = "right" if found[worst] < ACCURACY else "WRONG"
                rows.append((kernels, activation, "steady" if steady else "waits", worst, found[worst], verdict))
    return Table(("kernels", "activation", "step", "worst gradient", "relative error", ""), rows)


def _errors(bench: Bench, activation: str, steady: bool) -> dict[str, float]:
    config = _config(bench, activation)
    module, _ = bench.module(config)
    first, batch = _rows(bench, config).batches(2)
    module.step_gradients(first.source, first.target)  # thresholds and biases find their start
    n_dead = config.d_sae // 50
    module.b_enc[-n_dead:] = -1e3
    if activation == "jumprelu":
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
    n_steps = 6 if bench.small else 130
    for kernels in bench.kernels():
        for activation in get_args(Activation):
            config = bench.config(activation=activation)
            with using(kernels):
                one, other = (_trained(bench, config, n_steps) for _ in range(2))
            differing = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
            rows.append((kernels, activation, n_steps, "the same bits" if not differing else f"DIFFER: {differing}"))
            del one, other
    return Table(("kernels", "activation", "steps", "two runs"), rows)


def _trained(bench: Bench, config, n_steps: int) -> dict[str, torch.Tensor]:
    module: TrainingTranscoder
    module, optimizer = bench.module(config)
    ready = bench.batches(4)
    module.tokens_since_fired[-config.d_sae // 20 :] = config.n_dead_after
    for step in range(n_steps):
        batch = ready[step % len(ready)]
        train_step(module, optimizer, batch.source, batch.target, LR, step)
    return module.state_dict()
