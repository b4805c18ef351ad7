"""How much memory training takes at its peak, in a process of its own, at a size where it matters."""

from pathlib import Path

import pytest

from store.shards.writer import StoreWriter
from tests.child import python
from tests.making import make_norm, make_recipe, make_rows

D, D_SAE, ROWS = 640, 8192, 2048
STEPS = """
import sys
from pathlib import Path
import torch
from store.loader.batches import batches
from store.shards.reader import open_store
from train.config import TrainConfig
from train.checkpoint import candidates
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer
from train.step.optimizer import train_step

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def train(rows, d_sae, k, n_dead):
    config = TrainConfig(model="tiny", layer=1, d_sae=d_sae, k=k, batch_rows=rows, tokens=rows, activation=sys.argv[2])
    module = TrainingTranscoder(config, store.manifest, store.norm, candidates(config, torch.device("cpu")))
    module.tokens_since_fired[:n_dead] = config.n_dead_after
    optimizer = make_optimizer(module, 1e-3)
    for _ in range(3):
        train_step(module, optimizer, batch.source[:rows], batch.target[:rows], 1e-3)

torch.set_grad_enabled(False)
store = open_store(Path(sys.argv[1]))
batch = next(batches(store, "train", 2048, stop=2048))
train(64, 256, 4, 8)  # what is compiled and imported at the first step is not the step's
before = peak()
train(2048, 8192, 64, 800)
print(peak() - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    recipe = make_recipe(context=128, shard_sequences=24)
    directory = tmp_path_factory.mktemp("wide") / "store"
    with StoreWriter(directory, recipe, make_norm(D)) as writer:
        writer.append(make_rows(0, recipe, d_in=D, d_out=D))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_the_peak_stays_under_weights_adam_and_three_batches_of_pre_activations(wide, activation):
    found = int(python("-c", STEPS, str(wide), activation))
    weights = 2 * D * D_SAE + D_SAE + D
    assert 12 * weights < found < 16 * weights + 3 * 4 * ROWS * D_SAE
