"""The worst rows against every row's error computed at once, and their contexts against the tokens on disk."""

import torch

from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.measurement import WorstRow
from evaluate.metrics.worst import WORST, RowsHere, in_words, worst_of, worst_rows
from evaluate.rows import Places
from tests.store.transcoders.making import make_transcoder


def test_worst_rows_are_the_largest_errors_with_their_own_context(store):
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 20))
    [a], _ = measure_rows([t], store, "heldout", 64, torch.device("cpu"), quiet=True)
    found = worst_rows(a.worst, float(a.whole("sse").sum()), store)
    errors, at = [], []
    for shard in store.manifest.of_split("heldout"):
        kept = shard.kept
        x = t.view(store.array(shard, "resid_mid")[:kept], store.norm)
        errors.append((t(x) - store.array(shard, "mlp_out")[:kept].float()).square().sum(1))
        at += [(shard.name, int(index)) for index in store.array(shard, "token_index")[:kept]]
    errors = torch.cat(errors)
    best = int(errors.argmax())
    context = store.manifest.recipe.context
    assert (found[0].shard, found[0].sequence * context + found[0].position) == at[best]
    assert abs(found[0].share - float(errors[best] / errors.sum())) < 1e-6
    assert [row.share for row in found] == sorted((row.share for row in found), reverse=True)
    assert len({row.document for row in found}) == len(found) <= WORST
    for row in found:
        shard = next(each for each in store.manifest.shards if each.name == row.shard)
        tokens = store.array(shard, "tokens")[row.sequence].tolist()
        assert [*row.before, row.token, *row.after] == tokens
        assert len(row.before) == row.position


def rows_here(start: int, documents: list[int]) -> RowsHere:
    document = torch.tensor(documents)
    ones = torch.ones(len(documents), dtype=torch.float64)
    return RowsHere(start, Places(document, document, document), ones.bool(), ones)


def test_no_two_of_one_document():
    found = worst_of([], torch.tensor([1.0, 9.0, 8.0, 7.0]), rows_here(0, [0, 1, 1, 2]))
    assert [each.row for each in found] == [1, 3, 0]
    found = worst_of(found, torch.tensor([7.5, 0.5]), rows_here(4, [2, 3]))
    assert [(each.row, each.document) for each in found] == [(1, 1), (4, 2), (0, 0), (5, 3)]


def test_worst_rows_of_batches_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    sse = torch.rand(2000, generator=generator, dtype=torch.float64)
    document = torch.randint(60, (2000,), generator=generator).tolist()
    found = []
    for start in range(0, 2000, 64):
        found = worst_of(found, sse[start : start + 64], rows_here(start, document[start : start + 64]))
    largest = {}
    for row in sse.argsort(descending=True).tolist():
        largest.setdefault(document[row], row)
    assert [each.row for each in found] == list(largest.values())[:WORST]


def test_ids_become_text():
    row = WorstRow(
        shard="s", sequence=0, position=2, document=0, before=(1, 2), token=3, after=(), share=0.5, fvu=1.5, outlier=False
    )
    [found] = in_words([row], lambda ids: [f"<{number}>" for number in ids])
    assert (found.before, found.token, found.after, found.share) == ("<1><2>", "<3>", "", 0.5)
