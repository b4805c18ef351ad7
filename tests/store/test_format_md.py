"""A stranger's reader, written from FORMAT.md with json, struct, numpy and a hash alone."""

import json
import struct

import numpy as np
import xxhash

from store.reader import Store

DTYPES = {"I32": np.int32, "F64": np.float64, "F32": np.float32, "BF16": np.uint16}


def read(path) -> dict[str, np.ndarray]:
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


def test_a_store_reads_as_format_md_says(store: Store):
    manifest = json.loads((store.directory / "manifest.json").read_text())
    canonical = json.dumps(manifest["recipe"], sort_keys=True, separators=(",", ":")).encode()
    assert manifest["fingerprint"] == xxhash.xxh3_128_hexdigest(canonical)
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
        if entry["split"] == "train":
            total, rows = total + kept.sum(0), rows + len(kept)
    np.testing.assert_allclose(manifest["statistics"]["mlp_out"]["mean"], total / rows, rtol=1e-12)
