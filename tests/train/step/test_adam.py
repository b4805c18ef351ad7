"""Adam over processes that share rows: what they send, what each keeps, and the sums in either precision."""

from pathlib import Path

import pytest
import torch

from tests.child import forked
from tests.making import make_store

D_SAE, D_IN, D_OUT = 41, 12, 10
VECTORS = D_SAE + D_OUT
"""Numbers of both biases; b_enc has one for each latent."""
SILENT = [3, 17, 31]
"""Latents that start anew after the last step."""

STEPS = """
import sys
from itertools import product
import torch, torch.distributed as dist
from store.loader.batches import batches
from store.shards.reader import open_store
from tests.child import fork_ranks
from tests.train.making import make_config
from train.parallel import Ranks, grid
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, state_of, train_step

torch.set_num_threads(1)
torch.set_grad_enabled(False)
folder = sys.argv[1]
store = open_store(f"{folder}/store")
ahead = list(batches(store, "train", 48, stop=48 * 4))
sent = 0


def counting(name, times, of):
    real = getattr(dist, name)

    def counted(*tensors, group=None):
        global sent
        sent += times * tensors[of].nbytes
        return real(*tensors, group=group)

    setattr(dist, name, counted)


# a ring sends each number to its neighbour so often, but for this process's own part
counting("all_reduce", 2, 0)
counting("reduce_scatter_tensor", 1, 1)
counting("all_gather_into_tensor", 1, 0)


def train(ranks, shard_optimizer, gradient_dtype):
    global sent
    options = dict(shard_optimizer=shard_optimizer, gradient_dtype=gradient_dtype)
    config = make_config(d_sae=41, batch_rows=48, lr=1e-3, dead_after=10_000, resample_every=6, **options)
    module = TrainingTranscoder(config, store.manifest, store.norm, "float32", ranks=ranks)
    module.b_enc[[3, 17, 31]] = -100.0
    optimizer = make_optimizer(module, 1e-3)
    step = optimizer.step
    local = []
    found = {}

    def counted_step():
        global sent
        sent = 0
        if not local:
            local.append(module.encoder.grad.clone())
        step()
        found.setdefault("summed", optimizer.parts["encoder"].own.grad.clone())
        found["sent"] = sent

    optimizer.step = counted_step
    for number in range(6):
        batch = ahead[number % len(ahead)]
        rows = slice(ranks.rank, None, ranks.world)
        train_step(module, optimizer, batch.source[rows], batch.target[rows], 1e-3, number)
    found["kept"] = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.ndim)
    found["own"] = optimizer.parts["encoder"].rows
    return found | {"local": local[0], "module": module.state_dict(), "adam": state_of(module, optimizer)}


def child(rank, world):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    options = product((False, True), ("float32", "bfloat16"))
    found = {(shards, dtype): train(grid(1), shards, dtype) for shards, dtype in options}
    torch.save(found, f"{folder}/{world}-{rank}")


for world in (2, 3):
    fork_ranks(world, lambda rank: child(rank, world))
"""

Found = dict[int, list[dict[tuple[bool, str], dict]]]
"""By number of processes, by process, by (shard_optimizer, gradient_dtype)."""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Found:
    folder: Path = tmp_path_factory.mktemp("adam")
    make_store(folder / "store")
    forked(STEPS, str(folder))
    return {
        world: [torch.load(folder / f"{world}-{rank}", weights_only=False) for rank in range(world)] for world in (2, 3)
    }


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sharded_optimizer_trains_the_same_weights_on_every_process(found, world, dtype):
    """To rounding: on a CPU Adam rounds what is left behind a tensor's last whole vector in another way, and a part ends
    elsewhere. Gradients of two processes are the same bits, those of three are added up in another order."""
    whole, sharded = (found[world][0][shards, dtype]["module"] for shards in (False, True))
    for process in found[world]:
        assert all(torch.equal(array, whole[name]) for name, array in process[False, dtype]["module"].items())
        assert all(torch.equal(array, sharded[name]) for name, array in process[True, dtype]["module"].items())
        if world == 2:
            rows = process[True, dtype]["own"]
            assert torch.equal(process[True, dtype]["summed"], process[False, dtype]["summed"][rows])
    if world == 2 or dtype == "float32":
        for name, array in sharded.items():
            torch.testing.assert_close(array, whole[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("world", [2, 3])
def test_joined_states_are_those_of_the_whole_optimizer(found, world):
    """Parts hold one or two of them; their second moments are the mean of all that fire, whoever keeps those."""
    whole, joined = (found[world][0][shards, "float32"]["adam"] for shards in (False, True))
    assert joined.keys() == whole.keys()
    for name, array in joined.items():
        torch.testing.assert_close(array, whole[name], rtol=1e-4, atol=1e-9, msg=name)
    first, second = joined["0.exp_avg"][SILENT], joined["0.exp_avg_sq"][SILENT]
    assert not first.any()
    assert (second == second[0]).all()
    assert second.all()
    assert found[world][1][True, "float32"]["adam"] == {}


@pytest.mark.parametrize(("world", "rows"), [(2, [21, 20]), (3, [14, 14, 13])])
def test_a_process_keeps_adams_state_of_its_own_latents(found, world, rows):
    for process, own in zip(found[world], rows, strict=True):
        assert process[False, "float32"]["kept"] == 2 * (D_SAE * (D_IN + D_OUT) + VECTORS)
        assert process[True, "float32"]["kept"] == 2 * (own * (D_IN + D_OUT) + VECTORS)


@pytest.mark.parametrize(("world", "padded"), [(2, 42), (3, 42)])
def test_a_step_sends_what_the_options_promise(found, world, padded):
    """Bytes of a ring, in units of (world - 1) / world. Only sharing needs an equal number of rows for each."""
    vectors = 2 * 4 * VECTORS
    expected = {
        (False, "float32"): 8 * D_SAE * (D_IN + D_OUT) + vectors,
        (False, "bfloat16"): 4 * D_SAE * (D_IN + D_OUT) + vectors,
        (True, "float32"): 8 * padded * (D_IN + D_OUT) + vectors,
        (True, "bfloat16"): 6 * padded * (D_IN + D_OUT) + vectors,
    }
    for process in found[world]:
        assert {options: each["sent"] for options, each in process.items()} == expected


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("shards", [False, True])
def test_gradients_in_bfloat16_are_off_by_a_rounding_for_each_process_at_most(found, world, shards):
    """Each process rounds its gradient, and a ring rounds after each of world - 1 additions: no number is rounded more than
    world times, each time by at most 2^-8 of what it has become."""
    local = torch.stack([process[shards, "bfloat16"]["local"].double() for process in found[world]])
    bound = ((1 + 2.0**-8) ** world - 1) * local.abs().sum(0)
    for process in found[world]:
        rows = process[shards, "bfloat16"]["own"]
        summed = process[shards, "bfloat16"]["summed"]
        assert torch.equal(summed, summed.bfloat16().float())
        assert ((summed.double() - local.sum(0)[rows]).abs() <= bound[rows]).all()
        assert summed.count_nonzero() > summed.numel() / 4
