"""Baselines of a set from the hub: a hub on loopback, asked with the hub's own client by a process of its own."""

import json
import shutil
from typing import Any

import pytest

from evaluate.sets.layers import digest_of
from store.errors import Refused
from store.transcoders.layouts import load_folder
from tests.child import python
from tests.evaluate.sets.making import LAYERS, Case, write_scope
from tests.hub import serving

SCRIPT = """
import json, sys
from pathlib import Path
from huggingface_hub import constants
from evaluate import baselines
from evaluate.sets.config import CompareSetConfig
from evaluate.sets.layers import digest_of, open_baseline, open_set

model, store, run = sys.argv[1:]
baselines.SCOPE1_REPOS[model] = "google/scope"
here = dict(model=model, layer=(0, 2), store=Path(store), run=Path(run), device="cpu")

def attempt(name, baseline=None, l0=None):
    config = CompareSetConfig(**here, baseline=baseline and Path(baseline), l0=l0)
    try:
        side = open_baseline(config, open_set(config))
        each = side.transcoders.values()
        found = [side.name, [t.config.source for t in each], [digest_of(t).hex() for t in each]]
    except ValueError as error:
        found = [type(error).__name__, getattr(error, "exit_code", 1), str(error)]
    print(json.dumps([name, found]))

attempt("google", l0="nearest")
attempt("wide", l0="width_65k")
attempt("repository", "hf://google/scope@v1")
attempt("wide of a repository", "hf://google/scope", l0="width_65k")
attempt("each", "hf://user/each/mine/layer{layer}/average_l0_3")
attempt("a layer is lacking", "hf://user/lacks")
attempt("a folder is lacking", "hf://user/each/mine/other{layer}")
attempt("no such l0", l0="77")
constants.HF_HUB_OFFLINE = True
attempt("offline", "hf://google/scope@v1")
attempt("google offline", l0="nearest")
"""

L0S = {0: (2, 9, 90), 2: (4, 8)}
"""The runs were made for an L0 of 3."""
WIDE = {0: 12, 2: 20}


@pytest.fixture(scope="module")
def served(gemma: Case, tmp_path_factory) -> dict[str, list[Any]]:
    """What each attempt found; under `digests` those of the files on disk."""
    root = tmp_path_factory.mktemp("hub")
    digests: dict[str, list[str]] = {"nearest": [], "wide": [], "each": []}
    for layer in LAYERS:
        for l0 in L0S[layer]:
            write_scope(root / "scope", layer, l0)
        write_scope(root / "scope", layer, WIDE[layer], width=65)
        near = root / f"scope/layer_{layer}/width_16k/average_l0_{L0S[layer][0]}"
        wide = root / f"scope/layer_{layer}/width_65k/average_l0_{WIDE[layer]}"
        for kind, folder in (("nearest", near), ("wide", wide)):
            digests[kind].append(digest_of(load_folder(folder, layer, gemma.model.name)).hex())
        same = shutil.copytree(near, root / f"each/mine/layer{layer}/average_l0_3")
        digests["each"].append(digest_of(load_folder(same, layer, gemma.model.name)).hex())
    write_scope(root / "lacks", 0, 3)
    environment = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    with serving() as (hub, endpoint):
        for name, folder in (("google/scope", "scope"), ("user/each", "each"), ("user/lacks", "lacks")):
            hub.add(name, root / folder)
        words = (gemma.model.name, str(gemma.folder / "stores"), str(gemma.folder / "layer{layer}" / "run"))
        lines = python("-c", SCRIPT, *words, HF_ENDPOINT=endpoint, **environment).splitlines()
    return dict(json.loads(line) for line in lines if line.startswith("[")) | {"digests": digests}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [
        ("google", "nearest"),
        ("wide", "wide"),
        ("repository", "nearest"),
        ("wide of a repository", "wide"),
        ("offline", "nearest"),
    ],
)
def test_each_layers_transcoder_of_a_repository_is_the_one_on_disk(served, attempt, kind):
    name, sources, digests = served[attempt]
    assert digests == served["digests"][kind]
    numbers = [L0S[layer][0] if kind == "nearest" else WIDE[layer] for layer in LAYERS]
    for layer, number, source in zip(LAYERS, numbers, sources, strict=True):
        assert f"google/scope/layer_{layer}/width_{65 if kind == 'wide' else 16}k/average_l0_{number}" in source
    assert "scope" in name
    assert "(jumprelu)" in name


def test_a_folder_of_the_hub_for_each_layer_is_a_baseline(served):
    name, sources, digests = served["each"]
    assert digests == served["digests"]["each"]
    assert [f"/mine/layer{layer}/average_l0_3@" in source for layer, source in zip(LAYERS, sources, strict=True)] == [
        True
    ] * 2
    assert name == "average_l0_3 (jumprelu)"


@pytest.mark.parametrize(
    ("attempt", "kind", "code", "message"),
    [
        ("a layer is lacking", "Refused", 1, "layer 2: user/lacks holds no transcoder for layer 2, but 1 for others"),
        ("a folder is lacking", "Refused", 1, "layer 0: user/each has no transcoder at 'mine/other0'"),
        ("no such l0", "Refused", 1, "layer 0: no published transcoder has L0=77; there are layer_0/"),
        ("google offline", "HubUnreachable", 69, "layer 0: HF_HUB_OFFLINE is set, so Google's repository google/scope"),
    ],
)
def test_a_layer_without_a_baseline_is_named(served, attempt, kind, code, message):
    assert served[attempt][:2] == [kind, code]
    assert served[attempt][2].startswith(message)


def test_all_of_googles_cannot_stand_in_one_set(gemma):
    with pytest.raises(Refused, match="l0 is all, but a set has one baseline a layer; give nearest, or part of a path"):
        gemma.config(l0="all")
