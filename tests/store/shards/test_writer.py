"""A store as it is written: shards, sums, what a resume finds and refuses."""

import errno
import os
from itertools import count
from pathlib import Path

import pytest
import torch

from store.errors import Damaged
from store.shards.manifest import load_manifest
from store.shards.reader import Store, check_shards, open_store
from store.shards.rows import shard_order
from store.shards.sums import BLOCK, shard_sums
from store.shards.writer import StoreWriter
from store.views import rms
from tests.killed import Killed
from tests.making import BOS, EOS, PAD, files_of, make_norm, make_recipe, make_rows, make_store


def test_rows_are_shuffled_with_excluded_ones_last():
    tokens = make_rows(0, make_recipe()).tokens
    order, kept = shard_order(tokens, (PAD, EOS, BOS), seed=5)
    excluded = torch.isin(tokens.flatten(), torch.tensor([PAD, EOS, BOS]))[order]
    assert not excluded[:kept].any()
    assert excluded[kept:].all()
    assert sorted(order.tolist()) == list(range(tokens.numel()))
    assert order[:kept].tolist() != sorted(order[:kept].tolist())


def test_token_index_leads_each_row_back_to_its_activation(store: Store):
    for number, shard in enumerate(store.manifest.shards):
        given = make_rows(number, store.manifest.recipe)
        index = store.array(shard, "token_index").long()
        assert torch.equal(store.array(shard, "tokens"), given.tokens)
        for site, values in given.sites.items():
            assert torch.equal(store.array(shard, site), values.bfloat16()[index])


def test_statistics_are_the_moments_of_the_kept_training_rows(store: Store):
    training = store.manifest.of_split("train")
    for site in ("resid_mid", "mlp_out"):
        rows = torch.cat([store.array(shard, site)[: shard.kept] for shard in training]).double()
        moments = store.manifest.statistics[site]
        assert moments.rows == len(rows)
        torch.testing.assert_close(torch.tensor(moments.mean, dtype=torch.float64), rows.mean(0), rtol=1e-12, atol=1e-12)
        assert moments.mean_squared_norm == pytest.approx(rows.square().sum(1).mean().item(), rel=1e-12)
    normalised = torch.cat([rms(store.array(s, "resid_mid")[: s.kept], store.norm) for s in training]).double()
    found = torch.tensor(store.manifest.statistics["resid_mid.rms"].mean, dtype=torch.float64)
    torch.testing.assert_close(found, normalised.mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "width", "kept"),
    [
        (torch.bfloat16, 300, 4500),
        (torch.float32, 300, 4500),
        (torch.float16, 144, 4096 + 272),
        (torch.float16, 136, 4096 + 272),
        (torch.bfloat16, 301, 4400),
        (torch.float32, 10, 4096 + 16),
        (torch.bfloat16, 3, 100),
        (torch.bfloat16, 32, 7),
        (torch.float32, 32, 0),
    ],
)
def test_sums_have_the_bits_of_pytorchs_over_whole_blocks(dtype, width, kept, threads):
    values = (torch.randn(5000, width) * 10 ** torch.randn(width)).to(dtype)
    values[0] = -0.0
    norm = make_norm(width)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = shard_sums({"resid_mid": values}, kept, norm)
    torch.set_num_threads(before)
    for name, view in (("resid_mid", values), ("resid_mid.rms", rms(values, norm))):
        blocks = view[:kept].double().split(BLOCK)
        expected = sum((block.sum(0) for block in blocks), torch.zeros(width, dtype=torch.float64))
        squares = sum((block.square().sum(0) for block in blocks), torch.zeros(width, dtype=torch.float64))
        assert found[f"sum.{name}"].equal(expected)
        assert found[f"sum_of_squares.{name}"].equal(squares)


def test_a_store_continued_by_a_new_writer_is_the_same_bytes(tmp_path):
    make_store(tmp_path / "whole", 5)
    for n_shards in (1, 2, 2, 5):
        make_store(tmp_path / "pieces", n_shards)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "pieces")


@pytest.mark.parametrize("die_at", ["write", "rename shard", "rename manifest"])
def test_killed_between_any_two_operations_the_store_stays_valid(die_at, tmp_path, monkeypatch):
    make_store(tmp_path / "whole", 3)
    make_store(tmp_path / "cut", 2)
    writer = StoreWriter(tmp_path / "cut", make_recipe(), make_norm())

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if die_at == "write":
            patch.setattr("store.shards.safetensors_files.os.fsync", die)
        elif die_at == "rename shard":
            patch.setattr("store.disk.files.Path.replace", die)
        else:
            patch.setattr("store.shards.writer.save_manifest", die)
        writer.append(make_rows(2, make_recipe()))
    del writer  # its lock goes with it, its lock file stays, as after a kill
    assert len(open_store(tmp_path / "cut").manifest.shards) == 2
    make_store(tmp_path / "cut", 3)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "cut")


def test_another_recipe_is_refused_and_both_are_shown(store: Store):
    other = make_recipe(layer=2)
    with pytest.raises(ValueError, match=r"holds another harvest.*layer: 1 != 2") as refusal:
        StoreWriter(store.directory, other, make_norm())
    assert store.fingerprint in str(refusal.value)
    assert other.fingerprint in str(refusal.value)


@pytest.mark.parametrize(
    ("call", "code", "file"),
    [(1, errno.ENOSPC, r"shard-00004\.safetensors \(\d"), (3, errno.EDQUOT, r"manifest\.previous\.json;")],
)
def test_a_full_disk_is_named_and_once_there_is_room_the_store_goes_on(
    store: Store, tmp_path, monkeypatch, call, code, file
):
    before, calls = files_of(store.directory), count(1)
    writer = StoreWriter(store.directory, make_recipe(), make_norm())
    sync = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with writer, pytest.raises(OSError, match=rf"store is full: no space left for {file}.*kept: free some space"):
            writer.append(make_rows(4, make_recipe()))
    left = files_of(store.directory)
    assert left.keys() - before.keys() <= {"shard-00004.safetensors"}
    assert {name: left[name] for name in before} == before
    make_store(store.directory, 5)
    make_store(tmp_path / "whole", 5)
    assert files_of(store.directory) == files_of(tmp_path / "whole")


def test_a_flipped_byte_is_named(store: Store):
    path = store.directory / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors has another checksum.*make repair"):
        check_shards(store)


def test_a_truncated_shard_is_named(store: Store):
    os.truncate(store.directory / "shard-00001.safetensors", 1000)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors has 1000 bytes"):
        open_store(store.directory)


def test_small_files_that_are_damaged_are_named(store: Store):
    (store.directory / "shard-00004.entry.json").write_text("{")
    with pytest.raises(ValueError, match=r"shard-00004\.entry\.json is damaged; delete it"):
        StoreWriter(store.directory, make_recipe(), make_norm())
    os.truncate(store.directory / "norm.safetensors", 3)
    with pytest.raises(ValueError, match=r"norm\.safetensors is damaged .*; restore it"):
        open_store(store.directory)


def test_a_missing_shard_is_named(store: Store):
    (store.directory / "shard-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shard-00003\.safetensors is missing"):
        open_store(store.directory)


def test_a_store_without_shards_says_so(tmp_path):
    make_store_writer = StoreWriter(tmp_path, make_recipe(), make_norm())
    assert load_manifest(tmp_path) == make_store_writer.manifest
    with pytest.raises(ValueError, match="no finished shard"):
        open_store(tmp_path)


def test_ranks_in_any_order_make_the_bytes_of_one_writer(tmp_path):
    make_store(tmp_path / "one", 5)
    recipe = make_recipe()
    with StoreWriter(tmp_path / "two", recipe, make_norm(), rank=1, world=2) as second:
        for number in (1, 3):
            second.append(make_rows(number, recipe), number)
    with StoreWriter(tmp_path / "two", recipe, make_norm(), rank=0, world=2) as first:
        assert first.finished(3)
        assert not first.finished(2)
        for number in (4, 0, 2):
            first.append(make_rows(number, recipe), number)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_ring_unlinks_what_it_has_not_unlinked_before(tmp_path, monkeypatch):
    recipe = make_recipe(heldout_every=9)
    unlinked = []
    monkeypatch.setattr(
        Path, "unlink", lambda path, missing_ok, real=Path.unlink: (unlinked.append(path.name), real(path))[1]
    )
    with StoreWriter(tmp_path / "store", recipe, make_norm()) as writer:
        for number in range(6):
            writer.append(make_rows(number, recipe))
        train = [shard.name for shard in writer.manifest.of_split("train")]
        for trained in (3, 4, 6):
            writer.keep_ring(2, trained)
    assert [name for name in unlinked if name in train] == train[:5]


def test_a_store_of_one_shard_is_opened_without_listing_its_folder(store, monkeypatch):
    """A training beside its harvest opens shards one by one, in a folder that may hold any number of them."""
    shard = store.manifest.shards[1]
    alone = store.manifest.model_copy(update={"shards": (shard,)})
    path = store.directory / shard.name
    monkeypatch.setattr("store.disk.files.os.scandir", lambda folder: pytest.fail(f"{folder} was listed"))
    assert open_store(store.directory, alone).manifest.shards == (shard,)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match=f"{shard.name} has {shard.bytes - 1} bytes, the manifest says {shard.bytes}"):
        open_store(store.directory, alone)
    path.unlink()
    with pytest.raises(Damaged, match=f"{shard.name} is missing"):
        open_store(store.directory, alone)
