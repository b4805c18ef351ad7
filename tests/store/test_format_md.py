"""A stranger's reader, written from FORMAT.md with json, struct, zipfile, numpy and a hash alone."""

import json
import struct
import zipfile

import numpy as np
import pytest
import xxhash

from store.shards.reader import open_store
from store.shards.ring import Trained, save
from store.shards.writer import StoreWriter
from tests.making import make_mlp, make_norm, make_recipe, make_store

DTYPES = {"I32": np.int32, "F64": np.float64, "F32": np.float32, "BF16": np.uint16}


def read_zarr(path) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in [member.removesuffix("/zarr.json") for member in archive.namelist() if member.endswith("/zarr.json")]:
            described = json.loads(archive.read(f"{name}/zarr.json"))
            shape, inner = described["shape"], described["codecs"][0]["configuration"]["chunk_shape"]
            content = archive.read(f"{name}/c" + "/0" * len(shape))
            n_chunks = -(-shape[0] // inner[0])
            index = np.frombuffer(content[-4 - 16 * n_chunks : -4], "<u8").reshape(n_chunks, 2)
            chunks = [content[first : first + n_bytes - 4] for first, n_bytes in index.tolist()]
            array = np.frombuffer(b"".join(chunks), described["data_type"]).reshape(-1, *inner[1:])[: shape[0]]
            bfloat16 = described["attributes"]["dtype"] == "bfloat16"
            arrays[name] = (array.astype(np.uint32) << 16).view(np.float32) if bfloat16 else array
    return arrays


def read(path) -> dict[str, np.ndarray]:
    if path.name.endswith(".zarr.zip"):
        return read_zarr(path)
    content = path.read_bytes()
    [length] = struct.unpack("<Q", content[:8])
    arrays = {}
    for name, item in json.loads(content[8 : 8 + length]).items():
        start, stop = item["data_offsets"]
        flat = np.frombuffer(content[8 + length + start : 8 + length + stop], DTYPES[item["dtype"]])
        if item["dtype"] == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = flat.reshape(item["shape"])
    return arrays


@pytest.mark.parametrize("name", ["safetensors", "zarr"])
def test_a_store_reads_as_format_md_says(tmp_path, name):
    store = make_store(tmp_path, format=name)
    manifest = json.loads((store.directory / "manifest.json").read_text())
    canonical = json.dumps(manifest["recipe"], sort_keys=True, separators=(",", ":")).encode()
    assert manifest["fingerprint"] == xxhash.xxh3_128_hexdigest(canonical)
    norm = read(store.directory / "norm.safetensors")
    np.testing.assert_array_equal(norm["gain"], make_norm().gain.numpy())
    total, rows = 0.0, 0
    for number, entry in enumerate(manifest["shards"]):
        path = store.directory / entry["name"]
        assert xxhash.xxh3_128_hexdigest(path.read_bytes()) == entry["xxh3_128"]
        assert entry["split"] == ("heldout" if number % manifest["recipe"]["heldout_every"] == 1 else "train")
        arrays = read(path)
        tokens = arrays["tokens"].reshape(-1)[arrays["token_index"]]
        excluded = np.isin(tokens, manifest["recipe"]["excluded_tokens"])
        assert not excluded[: entry["kept"]].any()
        assert excluded[entry["kept"] :].all()
        kept = arrays["mlp_out"][: entry["kept"]].astype(np.float64)
        np.testing.assert_allclose(arrays["sum.mlp_out"], kept.sum(0), rtol=1e-12)
        source = arrays["resid_mid"][: entry["kept"]]
        assert source.shape[1] == manifest["widths"]["resid_mid"] == len(norm["gain"])
        rms = source / np.sqrt(np.square(source).mean(1, keepdims=True) + manifest["norm"]["eps"])
        np.testing.assert_allclose(arrays["sum.resid_mid.rms"], rms.sum(0, dtype=np.float64), rtol=1e-4, atol=1e-4)
        ends = np.isin(arrays["tokens"][:, 1:], manifest["recipe"]["excluded_tokens"]).sum()
        assert entry["kept"] == entry["rows"] - entry["n_sequences"] - ends
        if entry["split"] == "train":
            total, rows = total + kept.sum(0), rows + len(kept)
    np.testing.assert_allclose(manifest["statistics"]["mlp_out"]["mean"], total / rows, rtol=1e-12)


def test_recomputed_targets_read_as_format_md_says(tmp_path):
    make_store(tmp_path, mlp=make_mlp(), targets="recomputed")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    described = manifest["mlp"]
    content = (tmp_path / "mlp.safetensors").read_bytes()
    assert (described["bytes"], described["xxh3_128"]) == (len(content), xxhash.xxh3_128_hexdigest(content))
    assert (described["kind"], described["activation"], manifest["format_version"]) == ("gated", "gelu_tanh", 4)
    w = {name: array.astype(np.float64) for name, array in read(tmp_path / "mlp.safetensors").items()}
    gain = read(tmp_path / "norm.safetensors")["gain"]

    def rms(rows: np.ndarray, eps: float) -> np.ndarray:
        return rows / np.sqrt(np.square(rows).mean(1, keepdims=True) + eps)

    for entry in manifest["shards"]:
        arrays = read(tmp_path / entry["name"])
        true = arrays["proof.mlp_out"].astype(np.float64)
        x = rms(arrays["resid_mid"][: len(true)].astype(np.float64), manifest["norm"]["eps"]) * gain
        gate = x @ w["W_gate"].T + w["b_gate"]
        gelu = gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2
        out = (gelu * (x @ w["W_up"].T + w["b_up"])) @ w["W_down"].T + w["b_down"]
        error = rms(out, described["post_norm"]["eps"]) * w["post_gain"] - true
        fvu = np.square(error).sum() / np.square(true - true.mean(0)).sum()
        assert "mlp_out" not in arrays
        assert len(true) == min(64, entry["kept"])
        np.testing.assert_allclose(entry["recomputed_fvu"], fvu, atol=2e-8)
        assert 0 < fvu < 3e-4


def test_a_ring_reads_as_format_md_says(tmp_path):
    make_store(tmp_path, 9)
    with StoreWriter(tmp_path, make_recipe(), make_norm()) as writer:
        writer.keep_ring(4, 3)
    save(tmp_path, Trained(runs=("run",), shards=5))
    manifest, ring, trained = (
        json.loads((tmp_path / name).read_text()) for name in ("manifest.json", "ring.json", "trained.json")
    )
    training = [(number, entry) for number, entry in enumerate(manifest["shards"]) if entry["split"] == "train"]
    gone = max(ring["deleted"], trained["shards"])
    there = [entry["name"] for number, entry in training if number >= gone]
    assert there == [shard.name for shard in open_store(tmp_path).manifest.of_split("train")]
    on_disk = {number for number, entry in training if (tmp_path / entry["name"]).exists()}
    assert on_disk == {number for number, _ in training if number >= ring["deleted"]}
    total, rows = np.array(ring["sums"]["sum.mlp_out"]), 0
    for number, entry in training:
        rows += entry["kept"]
        if number in on_disk:
            total = total + read(tmp_path / entry["name"])["sum.mlp_out"]
    np.testing.assert_allclose(manifest["statistics"]["mlp_out"]["mean"], total / rows, rtol=1e-12)
