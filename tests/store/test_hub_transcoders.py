"""Transcoders on the hub, by hf://user/repo/path@revision: asked of a hub on loopback with the hub's own client."""

import pytest

from store.errors import Refused
from store.hub import fetch_transcoder, files_at
from store.names import hub_name
from tests.child import python
from tests.hub import serving
from tests.store.transcoders.making import make_transcoder, write_circuit_tracer, write_scope1

SCRIPT = """
import sys
from pathlib import Path
from evaluate.baselines import find_baselines
from store.hub import fetch_transcoder
from store.names import hub_name
from store.transcoders.layouts import load_folder
from store.transcoders.transcoder import Transcoder

def attempt(name, call):
    try:
        print(name, call(), sep="\\t")
    except ValueError as error:
        print(name, f"{type(error).__name__} {error}", sep="\\t")

attempt("run", lambda: Transcoder.load("hf://user/repo/runs/one@v1").config.name)
attempt("pathlib", lambda: Transcoder.load(str(Path("hf://user/repo/runs/one@v1"))).config.name)
place = fetch_transcoder("hf://user/repo/set", 2)
attempt("set", lambda: load_folder(place, 2, "").config.layer)
attempt("files", lambda: " ".join(sorted(path.name for path in place.iterdir())))
attempt("name", lambda: hub_name(place))
attempt("layer", lambda: load_folder(fetch_transcoder("hf://user/repo/set/layer_1.safetensors"), 9, "").config.layer)
attempt("scope", lambda: load_folder(fetch_transcoder("hf://user/repo/layer_8/width_16k/average_l0_92"), 8, "m").config.k)
attempt("listed", lambda: load_folder(fetch_transcoder("hf://user/repo/listed", 0), 0, "").config.k)
attempt("unknown", lambda: fetch_transcoder("hf://user/none/x"))
attempt("revision", lambda: fetch_transcoder("hf://user/repo/set@v2"))
attempt("folder", lambda: fetch_transcoder("hf://user/repo/nothing"))
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
attempt("offline", lambda: Transcoder.load("hf://user/repo/runs/one@v1").config.name)
attempt("offline set", lambda: load_folder(fetch_transcoder("hf://user/repo/set", 2), 2, "").config.layer)
attempt("offline other", lambda: fetch_transcoder("hf://user/repo/elsewhere"))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What each call ended with; under `fetched`, the names of all files that were."""
    root = tmp_path_factory.mktemp("hub")
    make_transcoder(name="ours").save(root / "runs/one")
    (root / "runs/one/activation_samples").mkdir()
    (root / "runs/one/activation_samples/features.parquet").write_text("many bytes")
    write_circuit_tracer(root / "set", layers=(0, 1, 2))
    write_scope1(root)
    listed = "hf://user/repo/layer_8/width_16k/average_l0_92/params.npz?revision=v1"
    (root / "listed").mkdir()
    (root / "listed/config.yaml").write_text(f"model_kind: transcoder_set\ntranscoders:\n- {listed}\n")
    environment = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    with serving() as (hub, endpoint):
        hub.add("user/repo", root)
        lines = python("-c", SCRIPT, HF_ENDPOINT=endpoint, **environment).splitlines()
        names = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    return dict(line.split("\t", 1) for line in lines if "\t" in line) | {"fetched": " ".join(names)}


@pytest.mark.parametrize(
    ("call", "end"),
    [
        ("run", "ours"),
        ("pathlib", "ours"),
        ("set", "2"),
        ("files", "config.yaml layer_2.safetensors"),
        ("name", f"hf://user/repo/set@{0:012x}"),
        ("layer", "1"),
        ("scope", "92"),
        ("listed", "92"),
        ("unknown", "Refused the transcoder at hf://user/none/x is not on the hub, or is private"),
        ("revision", "Refused the transcoder at hf://user/repo/set@v2 has no such revision on the hub; choose another"),
        ("offline", "ours"),
        ("offline set", "2"),
        ("offline other", "Refused hf://user/repo/elsewhere is not among what was fetched before"),
        ("folder", "Refused user/repo has no transcoder at 'nothing'; name the folder that holds its files"),
    ],
)
def test_a_place_on_the_hub_is_fetched_and_read(said, call, end):
    assert said[call].startswith(end)


def test_nothing_but_the_transcoder_is_fetched(said):
    assert "layer_2.safetensors" in said["fetched"]
    assert "features.parquet" not in said["fetched"]
    assert "layer_0.safetensors" not in said["fetched"]


def test_files_of_one_transcoder_lie_directly_in_its_folder():
    files = [
        "config.json",
        "a/config.json",
        "a/w.safetensors",
        "a/features/1.bin",
        "s/config.yaml",
        "s/layer_1.safetensors",
    ]
    assert files_at("", files, None) == ["config.json"]
    assert files_at("a", files, None) == ["a/config.json", "a/w.safetensors"]
    assert files_at("s", files, 0) == ["s/config.yaml"]
    assert files_at("s/layer_1.safetensors", files, None) == ["s/config.yaml", "s/layer_1.safetensors"]


@pytest.mark.parametrize("url", ["hf://user", "hf://", "hf://user@main/repo"])
def test_a_place_that_names_no_repository_is_refused(url):
    with pytest.raises(Refused, match="is no place on the hub; write hf://user/repo/path"):
        fetch_transcoder(url)


def test_other_folders_have_no_name_on_the_hub(tmp_path):
    assert hub_name(tmp_path) is None
