"""`--layer all` of harvest and plan: the model's depth, known from its config.json before anything is loaded."""

import json
import logging
from pathlib import Path

import pytest

from harvest.model import depth
from harvest.model.depth import every_layer
from store import model_config
from store.errors import Refused
from store.layers.parse import spell_layers
from store.shards.reader import open_store
from tests.command import run
from tests.harvest.making import options_of


def test_all_is_every_layer_of_the_model_in_one_pass(config, monkeypatch, capsys, caplog):
    n_layers = json.loads((Path(config.model) / "config.json").read_text())["num_hidden_layers"]
    caplog.set_level(logging.INFO)
    assert run(monkeypatch, capsys, "harvest", *options_of(config, "all"))[0] == 0
    stores = [open_store(config.store / f"layer{layer}") for layer in range(n_layers)]
    assert not (config.store / f"layer{n_layers}").exists()
    assert len({store.manifest.recipe.stream for store in stores}) == 1
    assert sum("on cpu in torch.float32" in message for message in caplog.messages) == 1  # the model was loaded once
    assert run(monkeypatch, capsys, "harvest", "info", "--layer", "all", "--store", str(config.store))[0] == 0
    assert f"layers {spell_layers(range(n_layers))}: those that {config.store} holds" in caplog.messages


def test_a_range_beyond_the_depth_is_one_line_before_the_model_is_loaded(config, monkeypatch, capsys):
    for command in ((), ("plan",)):
        code, errors = run(monkeypatch, capsys, "harvest", *command, *options_of(config, "0-9"))
        assert code == 1
        assert errors.startswith("harvest: error: layer ")
        assert "is out of range" in errors
        assert errors.count("\n") == 1
    assert not config.store.exists()


def test_the_depth_of_a_model_on_the_hub_is_asked_for_its_config_alone(tmp_path, monkeypatch):
    asked = []

    def download(model: str, name: str, revision: str | None) -> None:
        asked.append((model, name, revision))
        (tmp_path / name).write_text(json.dumps({"text_config": {"num_hidden_layers": 26} if revision else {}}))

    monkeypatch.setattr(depth, "hf_hub_download", download)
    cached = str(tmp_path / "config.json")
    monkeypatch.setattr(model_config, "try_to_load_from_cache", lambda *a, **k: cached if asked else None)
    assert every_layer("google/gemma-2-2b", "abc") == range(26)
    assert asked == [("google/gemma-2-2b", "config.json", "abc")]
    (tmp_path / "config.json").unlink()
    asked.clear()
    with pytest.raises(Refused, match="google/gemma-2-2b does not say how many it has; write the layers out"):
        every_layer("google/gemma-2-2b", None)
