"""What is held of rows does not grow with them, and figures stay what they are."""

import pytest
import torch

from evaluate import rows
from evaluate.metrics import accumulate
from evaluate.metrics.accumulate import measure_rows, target_mean_and_limit
from evaluate.metrics.results import ROW_METRICS, evaluate
from evaluate.rows import Groups, Places, PlacesInOrder, places, places_by_shard
from store.loader.batches import Batch
from tests.making import make_store

CPU = torch.device("cpu")


def held(*things) -> int:
    """Bytes of the tensors that some objects hold on the host and keep after the pass."""
    found = 0
    for thing in things:
        for value in vars(thing).values():
            found += value.nbytes if isinstance(value, torch.Tensor) else 0
            found += held(value) if isinstance(value, Groups) else 0
    return found


def test_what_is_held_of_rows_does_not_grow_with_them(tmp_path, transcoders, monkeypatch):
    monkeypatch.setattr(rows, "DOCUMENT_SUMS", 12)
    sizes = []
    for n in (12, 48):
        store = make_store(tmp_path / str(n), n, heldout_every=2)
        accumulators, facts = measure_rows(transcoders, store, "heldout", 64, CPU)
        assert facts.groups.n_documents > 12
        sizes.append(held(*accumulators, facts))
    assert sizes[0] == sizes[1]


def test_groups_of_documents_change_no_figure_and_keep_intervals_near(tmp_path, transcoders, monkeypatch):
    store = make_store(tmp_path, 60, heldout_every=2)
    one = evaluate(transcoders, store, "heldout", 64, CPU)
    assert one[0].n_documents > 60
    monkeypatch.setattr(rows, "DOCUMENT_SUMS", 40)
    other = evaluate(transcoders, store, "heldout", 64, CPU)
    for few, many in zip(other, one, strict=True):
        assert few.n_documents == many.n_documents
        for name in ROW_METRICS:
            assert few.value(name) == pytest.approx(many.value(name), rel=1e-12), name
        widths = [high - low for low, high in (few.interval("fvu"), many.interval("fvu"))]
        assert widths[0] == pytest.approx(widths[1], rel=0.4)


def test_the_median_norm_of_many_rows_is_that_of_evenly_spaced_ones(monkeypatch):
    monkeypatch.setattr(accumulate, "MEDIAN_ROWS", 4)
    source = torch.arange(1.0, 11.0)[:, None]
    batches = [Batch(source=part, target=part, cursor=0) for part in source.split(4)]
    _, farthest, _ = target_mean_and_limit(batches, 10, CPU)
    assert farthest == 5 * 4  # of rows 0, 3, 6 and 9 with norms 1, 4, 7, 10


def test_documents_are_numbered_without_gaps_where_only_some_rows_are_read(store):
    whole = places(store, "heldout")
    for limit in (1, 7, 40, len(whole) - 3):
        some = places(store, "heldout", limit)
        assert torch.equal(some.document, torch.unique(whole.document[:limit], return_inverse=True)[1])
        assert torch.equal(some.token, whole.token[:limit])
    taken = PlacesInOrder(places_by_shard(store, "heldout"))
    parts = [taken.take(n) for n in (1, 30, 64, len(whole) - 95)]
    assert torch.equal(Places.joined(parts).document, whole.document)
