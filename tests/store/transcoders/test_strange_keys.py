"""Keys that nobody here knows, in the files of a transcoder: named with the file, what is known, and what to do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from store.errors import Damaged, Refused
from store.shards.origin import read_origin, write_origin
from store.transcoders.layouts import LAYOUTS, load_folder
from tests.making import make_store
from tests.store.transcoders.making import make_transcoder


def saved(layout: str, folder: Path) -> Path:
    """A transcoder in a layout."""
    activation = LAYOUTS[layout].holds.activation
    made = make_transcoder(view="rms" if layout == "gemma-scope-1" else "normed", d_in=12, d_out=12, activation=activation)
    folder.mkdir()
    assert LAYOUTS[layout].save is not None
    LAYOUTS[layout].save(made, folder)
    return folder


def with_an_array_more(folder: Path) -> Path:
    """The file of the arrays, which has W_mag, too."""
    [path] = [path for path in folder.iterdir() if path.suffix in (".npz", ".safetensors")]
    if path.suffix == ".npz":
        np.savez(path, **dict(np.load(path)), W_mag=np.zeros(3, np.float32))
    else:
        save_file(load_file(path) | {"W_mag": torch.zeros(3)}, path)
    return path


@pytest.mark.parametrize("layout", [name for name, each in LAYOUTS.items() if each.save is not None])
def test_an_array_that_is_not_known_is_refused_with_what_is_known_and_the_cure(layout, tmp_path):
    path = with_an_array_more(saved(layout, tmp_path / "layer_1_width_1k_l0_small"))
    with pytest.raises(Damaged) as refused:
        load_folder(path.parent, 1, "tiny")
    said = str(refused.value)
    assert said.startswith(f"{path}: unknown keys ['W_mag']; known are [")
    assert "dec" in said
    assert said.endswith(
        "if the output does not need what is unknown, save the file without it; else give the transcoder in another of the "
        "layouts that store/README.md lists"
    )


def test_a_key_of_a_later_version_in_the_files_of_a_run_is_refused_with_the_cure(tmp_path):
    make_transcoder().save(tmp_path / "run")
    path = tmp_path / "run/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"novel": 3}))
    with pytest.raises(Damaged) as refused:
        load_folder(tmp_path / "run", 1, "tiny")
    said = str(refused.value)
    assert said.startswith(f"{path}: novel: no key of this name is known (those that are known: activation, ")
    assert "d_sae, " in said
    assert said.endswith("); update the code if a later version wrote it, else take the key out")


def test_a_key_inside_an_object_is_named_with_its_place(tmp_path):
    write_origin(tmp_path, make_store(tmp_path / "store"))
    path = tmp_path / "origin.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"store": written["store"] | {"novel": 3}}))
    with pytest.raises(Damaged, match=r"does not fit at store\.novel: no key of this name is known; restore it, or remove"):
        read_origin(tmp_path)


def test_a_file_of_another_kind_lacks_keys_and_has_others(tmp_path):
    make_transcoder().save(tmp_path / "run")
    save_file({"encoder.weight": torch.zeros(1)}, tmp_path / "run/transcoder.safetensors")
    strange = r"missing keys \['W_dec', .*\], unknown keys \['encoder.weight'\]; known are .*; it is of another kind"
    with pytest.raises(Damaged, match=strange):
        load_folder(tmp_path / "run", 1, "tiny")


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("google/gemma-scope-2b-pt-transcoders", "; on the hub it would be hf://google/gemma-scope-2b-pt-transcoders"),
        ("google/x/layer_3/width_16k", "; on the hub it would be hf://google/x/layer_3/width_16k"),
        ("https://huggingface.co/google/x", "; on the hub it would be hf://google/x"),
        (
            "https://huggingface.co/google/x/tree/main/layer_3/width_16k",
            "; on the hub it would be hf://google/x/layer_3/width_16k",
        ),
        ("huggingface.co/google/x/blob/v1/a/b.npz?download=true", "; on the hub it would be hf://google/x/a/b.npz@v1"),
        ("/nowhere/at/all", ""),
        ("nowhere", ""),
    ],
)
def test_a_name_of_the_hub_where_a_folder_is_wanted_gets_a_hint(place, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refused:
        load_folder(Path(place), 1, "tiny")
    assert str(refused.value) == f"{Path(place)} does not exist; give a folder or file that does{hint}"
