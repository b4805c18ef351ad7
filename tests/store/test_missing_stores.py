"""A layer whose store is not there: the message lists those that are, and has the command that harvests it."""

import json
import shlex

import pytest

from store.disk.suggest import STARTED_BY
from store.errors import Refused
from store.parents import require_store
from tests.command import run
from tests.making import make_store


@pytest.fixture
def parent(tmp_path, monkeypatch):
    """The default folder of two stores of the model `tiny`, seen from where commands are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STARTED_BY, raising=False)
    for layer in (1, 3):
        make_store(tmp_path / "data/tiny" / f"layer{layer}", layer=layer)
    return tmp_path / "data/tiny"


def test_training_names_the_layers_that_are_there_and_how_to_harvest_it(parent, monkeypatch, capsys):
    code, errors = run(monkeypatch, capsys, "train", "--model", "tiny", "--layer", "99", "--d-sae", "16", "--k", "4")
    assert code == 1
    assert errors.count("\n") == 1
    said, _, command = errors.rstrip().partition("to harvest it: ")
    assert "data/tiny/layer99 is not an activation store: it has no manifest.json; data/tiny holds layers 1, 3; " in said
    assert shlex.split(command)[1:] == ["-m", "harvest", "run", "--model", "tiny", "--layer", "99"]
    monkeypatch.setenv(STARTED_BY, "make")
    _, errors = run(monkeypatch, capsys, "train", "--model", "tiny", "--layer", "99", "--d-sae", "16", "--k", "4")
    assert errors.rstrip().endswith("to harvest it: make harvest MODEL=tiny LAYER=99")


def test_a_layer_beyond_a_known_model_is_not_to_be_harvested(parent, tmp_path):
    model = tmp_path / "tiny"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"num_hidden_layers": 18}))
    with pytest.raises(Refused, match="holds layers 1, 3; tiny has layers 0 to 17$"):
        require_store(parent / "layer99", "tiny")
    with pytest.raises(Refused, match="to harvest it: .* --layer 17 --store "):
        require_store(parent / "layer17", "tiny")


def test_a_folder_that_is_no_layers_has_no_command(tmp_path):
    with pytest.raises(Refused, match="it has no manifest.json; make one with `make harvest`$"):
        require_store(tmp_path / "elsewhere", "tiny")
    with pytest.raises(Refused, match="it has no manifest.json; to harvest it: .* --model tiny --layer 5"):
        require_store(tmp_path / "layer5", "tiny")


def test_a_forgotten_model_is_told_which_stores_there_are(parent, monkeypatch, capsys):
    _, errors = run(monkeypatch, capsys, "train", "--layer", "1")
    assert "data/gemma-2-2b/layer1 is not an activation store: it has no manifest.json; " in errors
    assert "; data/tiny holds layers 1, 3; to harvest it: " in errors
    assert "--model google/gemma-2-2b --layer 1" in errors
