"""The contract that every shard format keeps."""

import errno

import pytest
import safetensors.torch
import torch
import xxhash

from store import formats
from store.formats import FORMATS
from store.reader import read_array

ARRAYS = {
    "tokens": torch.arange(6, dtype=torch.int32).view(2, 3),
    "resid_mid": torch.randn(5, 4).bfloat16(),
    "sum.resid_mid": torch.randn(4, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}


@pytest.mark.parametrize("name", FORMATS)
def test_arrays_come_back_bit_for_bit(name, tmp_path):
    path = tmp_path / f"a{FORMATS[name].suffix}"
    FORMATS[name].write(path, ARRAYS)
    places = FORMATS[name].places(path)
    assert set(places) == set(ARRAYS)
    for key, array in ARRAYS.items():
        assert torch.equal(read_array(path, places[key]), array)


@pytest.mark.parametrize("name", FORMATS)
def test_size_and_checksum_are_those_of_the_file(name, tmp_path):
    path = tmp_path / "a"
    n_bytes, checksum = FORMATS[name].write(path, ARRAYS)
    content = path.read_bytes()
    assert (n_bytes, checksum) == (len(content), xxhash.xxh3_128_hexdigest(content))


@pytest.mark.parametrize("name", FORMATS)
def test_same_arrays_make_the_same_bytes(name, tmp_path):
    for file in ("a", "b"):
        FORMATS[name].write(tmp_path / file, ARRAYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("keep", [4, 40, -1])
def test_truncated_file_is_named(name, keep, tmp_path):
    path = tmp_path / "short"
    FORMATS[name].write(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="short is truncated"):
        FORMATS[name].places(path)


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    path = tmp_path / "a.safetensors"
    FORMATS["safetensors"].write(path, ARRAYS)
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

    monkeypatch.setattr(formats.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        FORMATS["safetensors"].write(tmp_path / "a", ARRAYS)
    assert (tmp_path / "a").stat().st_size == 0
