"""Leaving each active latent out of its row, alone: by hand, and against a dense float64 computation."""

import numpy as np
import pytest
import torch

from evaluate.metrics.usefulness import is_useful, usefulness
from store.sparse.scan import Entries
from tests.evaluate.dense import dense
from tests.making import make_store
from tests.store.transcoders.making import make_transcoder


def test_a_latent_is_useful_where_its_row_is_worse_without_it():
    """The target is (3, 0), the decoder rows (1, 0), (0, 1) and (2, 0), all with an activation of 1: the reconstruction is
    (3, 1). Without the first the error is (-1, 1), 2 in squares; without the second 0, and without the third (-2, 1), 5;
    with all of them it is 1."""
    entries = Entries(torch.ones(3), torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 2]))
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    error = torch.tensor([[3.0, 1.0]]) - torch.tensor([[3.0, 0.0]])
    assert is_useful(entries, error, W_dec).tolist() == [True, False, True]


def test_what_changes_nothing_is_not_useful():
    """The target (1, 0) halves a latent of (2, 0): without it the error is as large."""
    one = Entries(torch.ones(1), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    assert is_useful(one, torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])).tolist() == [False]


@pytest.mark.parametrize("skip", [False, True])
def test_shares_equal_a_dense_float64_computation(tmp_path, skip):
    store = make_store(tmp_path / "store", n_shards=8, context=64, shard_sequences=4)
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 9, 20), skip=skip)
    found = usefulness(t, store, torch.device("cpu"))
    useful, fired = np.zeros(20, int), np.zeros(20, int)
    latents = dense(store, t).latents
    row = 0
    for shard in store.manifest.of_split("heldout"):
        index = store.array(shard, "token_index").numpy()[: shard.kept]
        source, target = (store.array(shard, site)[: shard.kept] for site in ("resid_mid", "mlp_out"))
        acts = latents[row + index]
        row += shard.rows
        x = t.view(source.float(), store.norm).double()
        base = t.b_dec.double().numpy() + (0 if t.W_skip is None else (x @ t.W_skip.double().T).numpy())
        W, y = t.W_dec.double().numpy(), target.double().numpy()
        whole = np.square(base + acts @ W - y).sum(1)
        for latent in range(20):
            without = acts.copy()
            without[:, latent] = 0
            worse = np.square(base + without @ W - y).sum(1) > whole
            useful[latent] += (worse & (acts[:, latent] > 0)).sum()
            fired[latent] += (acts[:, latent] > 0).sum()
    assert found.fired.tolist() == fired.tolist()
    assert found.useful.tolist() == useful.tolist()
    assert 0 < useful.sum() < fired.sum()
    assert found.share.value == pytest.approx(useful.sum() / fired.sum())
    expected = np.where(fired > 0, useful / np.maximum(fired, 1), np.nan)
    np.testing.assert_allclose(found.by_latent.numpy(), expected, rtol=1e-6)


def test_a_dictionary_that_never_fires_has_no_share(tmp_path):
    store = make_store(tmp_path / "store")
    t = make_transcoder(d_in=12, d_out=10)
    t.b_enc.fill_(-1000.0)
    assert usefulness(t, store, torch.device("cpu")) is None
