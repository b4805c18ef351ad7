"""The contract that every shard format keeps."""

import errno
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
import xxhash
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from store.loader.batches import batches
from store.shards import safetensors_files
from store.shards.arrays import LocalFile, bytes_of, read_array, read_rows
from store.shards.formats import FORMATS, writer_for
from tests.making import make_store

WRITTEN = [name for name, kind in FORMATS.items() if kind.write is not None]
ZARR = [name for name in WRITTEN if name != "safetensors"]

ARRAYS = {
    "tokens": torch.arange(6, dtype=torch.int32).view(2, 3),
    "resid_mid": torch.randn(5, 4).bfloat16(),
    "sum.resid_mid": torch.randn(4, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_arrays_come_back_bit_for_bit(name, tmp_path):
    path = tmp_path / f"a{FORMATS[name].suffix}"
    writer_for(name)(path, ARRAYS)
    places = FORMATS[name].places(path)
    assert set(places) == set(ARRAYS)
    for key, array in ARRAYS.items():
        assert torch.equal(read_array(path, places[key]), array)


@pytest.mark.parametrize("name", WRITTEN)
def test_size_and_checksum_are_those_of_the_file(name, tmp_path):
    path = tmp_path / "a"
    n_bytes, checksum = writer_for(name)(path, ARRAYS)
    content = path.read_bytes()
    assert (n_bytes, checksum) == (len(content), xxhash.xxh3_128_hexdigest(content))


@pytest.mark.parametrize("name", WRITTEN)
def test_same_arrays_make_the_same_bytes(name, tmp_path):
    for file in ("a", "b"):
        writer_for(name)(tmp_path / file, ARRAYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("keep", [4, 40, -1])
def test_truncated_file_is_named(name, keep, tmp_path):
    path = tmp_path / "short"
    writer_for(name)(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="short is truncated"):
        FORMATS[name].places(path)


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory):
    """An array of several chunks in every format, the last one not full."""
    array = torch.randn(3000, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    paths = {name: tmp_path_factory.mktemp("rows") / name for name in WRITTEN}
    for name, path in paths.items():
        writer_for(name)(path, {"before": torch.zeros(5), "rows": array, "after": torch.ones(3)})
    return array, {name: (LocalFile(path), FORMATS[name].places(path)["rows"]) for name, path in paths.items()}


@settings(max_examples=30)
@given(name=st.sampled_from(WRITTEN), ends=st.tuples(st.integers(0, 3000), st.integers(0, 3000)))
def test_any_run_of_rows_can_be_read(many_rows, name, ends):
    array, places = many_rows
    out = torch.empty(max(ends) - min(ends), 300, dtype=torch.bfloat16)
    read_rows(*places[name], min(ends), bytes_of(out))
    assert torch.equal(out, array[min(ends) : max(ends)])


@pytest.mark.parametrize("name", WRITTEN)
def test_batches_are_the_same_from_every_format(name, tmp_path):
    expected = make_store(tmp_path / "a")
    store = make_store(tmp_path / "b", format=name)
    pairs = zip(batches(expected, "train", 32, stop=300), batches(store, "train", 32, stop=300), strict=True)
    assert all(torch.equal(a.source, b.source) and torch.equal(a.target, b.target) for a, b in pairs)


@pytest.mark.parametrize("name", ZARR)
def test_the_zarr_library_reads_what_we_write_with_bfloat16_as_its_bits(name, tmp_path):
    path = tmp_path / "a.zarr.zip"
    arrays = ARRAYS | {"rows": torch.randn(3000, 300).bfloat16()}
    writer_for(name)(path, arrays)
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert set(group) == set(arrays)
    for key, array in arrays.items():
        bits = group[key][...]
        assert group[key].attrs["dtype"] == str(array.dtype).removeprefix("torch.")
        if array.dtype == torch.bfloat16:
            assert np.array_equal((bits.astype("uint32") << 16).view("float32"), array.float().numpy())
        else:
            assert np.array_equal(bits, array.numpy())


@pytest.mark.parametrize("name", ZARR)
def test_unzipped_it_is_a_zarr_folder_whose_checksums_catch_a_flipped_bit(name, tmp_path):
    writer_for(name)(tmp_path / "a", {"rows": torch.randn(3000, 300)})
    with zipfile.ZipFile(tmp_path / "a") as archive:
        archive.extractall(tmp_path / "folder")
    chunks = tmp_path / "folder/rows/c/0/0"
    content = bytearray(chunks.read_bytes())
    content[5000] ^= 1
    chunks.write_bytes(content)
    rows = zarr.open_group(tmp_path / "folder", mode="r")["rows"]
    with pytest.raises(ValueError, match=r"[Cc]hecksum"):
        rows[:50]
    assert len(rows[2500:]) == 500


def test_a_damaged_compressed_shard_is_named_by_the_loader(tmp_path):
    store = make_store(tmp_path, 1, format="zarr-zstd")
    path = store.directory / store.manifest.shards[0].name
    place = store.places(store.manifest.shards[0])["mlp_out"]
    content = bytearray(path.read_bytes())
    content[place.offset + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000\.zarr\.zip cannot be read at row 0 .*another CRC32C.*make repair"):
        next(batches(store, "train", 8, shuffle=False))


def test_compression_makes_smooth_rows_smaller(tmp_path):
    arrays = {"rows": (torch.arange(60_000).view(200, 300) / 7).bfloat16()}
    sizes = {name: writer_for(name)(tmp_path / name, arrays)[0] for name in ZARR}
    assert sizes["zarr-zstd"] < 0.5 * sizes["zarr"]


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    path = tmp_path / "a.safetensors"
    writer_for("safetensors")(path, ARRAYS)
    loaded = safetensors.torch.load_file(path)
    assert all(torch.equal(loaded[key], array) for key, array in ARRAYS.items())


def test_we_read_what_the_safetensors_library_writes(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(ARRAYS, path, metadata={"format": "pt"})
    places = FORMATS["safetensors"].places(path)
    assert all(torch.equal(read_array(path, places[key]), array) for key, array in ARRAYS.items())


def test_a_full_disk_shows_before_the_first_byte(tmp_path, monkeypatch):
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_files.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        writer_for("safetensors")(tmp_path / "a", ARRAYS)
    assert (tmp_path / "a").stat().st_size == 0
