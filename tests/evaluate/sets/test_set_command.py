"""The command on a set: what it refuses before the model is loaded, Ctrl-C, results that are used again."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evaluate.sets import command, measure
from evaluate.sets.command import compare_set
from evaluate.sets.config import CompareSetConfig
from evaluate.sets.layers import open_set
from evaluate.sets.result import SetResult, read_set
from harvest.model import loading
from store.disk.lock import WriterLock
from store.errors import Busy, Damaged, Refused
from store.layout import MANIFEST, REPORT, SET_RESULT, SUMMARY, UNFINISHED
from store.transcoders.transcoder import Transcoder
from tests.evaluate.sets.making import LAYERS, Case


@pytest.fixture
def no_model(monkeypatch):
    """The model's weights must not be loaded."""

    def never(*args, **kwargs):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(loading.TransformerBridge, "boot_transformers", never)


def figures(result: SetResult) -> dict[str, float]:
    """Every number of a result, by its place."""

    def walk(found: object, place: str) -> dict[str, float]:
        if isinstance(found, dict):
            each: Mapping = found
        elif isinstance(found, list | tuple):
            each = dict(enumerate(found))
        else:
            return {place: found} if isinstance(found, float) else {}
        return {key: value for name, inner in each.items() for key, value in walk(inner, f"{place}/{name}").items()}

    return walk(result.as_json(), "")


def changed_runs(case: Case, folder: Path, changes: dict) -> Path:
    """Copies of the case's runs, that of the highest layer with another config; {layer} stands in the path."""
    for each in LAYERS:
        run = case.transcoders[each]
        run = replace(run, config=run.config.model_copy(update=changes)) if each == LAYERS[-1] else run
        run.save(folder / f"layer{each}" / "run")
    return folder / "layer{layer}" / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 2}, "layer is 2; a set needs two or more, like 8,17"),
        ({"layer": (2,)}, "layer is 2; a set needs two or more, like 8,17"),
        ({"layer": (0, 1)}, "layer1/run holds no transcoder: config.json is missing"),
        ({"name": "../out"}, "name is '../out'; give one folder name, like my-set"),
        ({"run": Path("one")}, r"one is one folder for layers 0,2; write {layer} where its number stands"),
        ({"store": Path("nowhere")}, "nowhere/layer0"),
        (
            {"baseline": Path("nowhere/layer{layer}")},
            "nowhere/layer0 does not exist; give a folder or file that does; on the hub",
        ),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(gemma, no_model, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        compare_set(gemma.config(**({"name": "refused"} | changes)))
    assert "\n" not in str(refused.value)
    assert not (gemma.folder / "set/refused").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_site": "resid_post"},
            "is of resid_post, but .*layer2 holds .*; harvest with --sites resid_post, or give",
        ),
        ({"target_site": "resid_mid"}, "predicts resid_mid, and only mlp_out can be replaced in the language model; give"),
        ({"model": "someone/else"}, "is of someone/else, but .* holds .*; give runs of that model"),
        ({"layer": 0}, "is for layer 0 with widths 16 -> 16, but .*layer2 holds layer 2"),
        ({"store_fingerprint": "0" * 32}, "was trained on store 0{32}, but .* give the store that it was trained on"),
    ],
)
def test_runs_that_cannot_stand_in_the_model_are_refused(gemma, no_model, tmp_path, changes, message):
    run = changed_runs(gemma, tmp_path, changes)
    with pytest.raises(Refused, match=message):
        compare_set(gemma.config(run=run))
    assert not (tmp_path / "set").exists()


def test_stores_of_two_harvests_are_refused(gemma, no_model, tmp_path):
    shutil.copytree(gemma.folder / "stores", tmp_path / "stores")
    path = tmp_path / "stores/layer2" / MANIFEST
    recipe = gemma.stores[2].manifest.recipe.model_copy(update={"dataset_revision": "another"})
    changed = {"recipe": json.loads(recipe.model_dump_json()), "fingerprint": recipe.fingerprint}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(Refused, match="were not harvested together: .*dataset_revision: .* != 'another'"):
        compare_set(gemma.config(store=tmp_path / "stores", name="two"))


def test_linear_maps_without_training_rows_are_refused_with_the_way_around(gemma, no_model, monkeypatch):
    """As in a bounded cache whose training shards were all deleted."""

    def without_rows(config: CompareSetConfig):
        opened = open_set(config)
        heldout = opened[0].store.manifest.of_split("heldout")
        manifest = opened[0].store.manifest.model_copy(update={"shards": heldout})
        return [replace(opened[0], store=replace(opened[0].store, manifest=manifest)), *opened[1:]]

    monkeypatch.setattr(command, "open_set", without_rows)
    with pytest.raises(Refused, match="layer0 holds no training rows for the best .*; leave it out with --no-linear"):
        compare_set(gemma.config(name="rowless"))


def test_a_model_of_other_weights_is_refused_before_they_are_loaded(gemma, no_model):
    more = Path(gemma.model.name) / "more.safetensors"
    save_file({"more": torch.zeros(1)}, more)
    recorded = gemma.stores[0].manifest.recipe.model_revision
    try:
        with pytest.raises(Refused, match=f"has weights xxh3:.* now, but the store was made with {recorded}; restore that"):
            compare_set(gemma.config(name="other-weights"))
    finally:
        more.unlink()


def test_damaged_heldout_shards_and_results_are_named(gemma, tmp_path):
    shutil.copytree(gemma.folder / "stores", tmp_path / "stores")
    shard = gemma.stores[0].manifest.of_split("heldout")[0].name
    path = tmp_path / "stores/layer0" / shard
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(Damaged, match=shard):
        compare_set(gemma.config(store=tmp_path / "stores", name="damaged"))
    folder = gemma.config(name="unreadable").folder
    folder.mkdir(parents=True)
    (folder / SET_RESULT).write_text("{")
    with pytest.raises(Damaged, match="make compare-set ARGS=--force"):
        compare_set(gemma.config(name="unreadable"))


def test_after_ctrl_c_the_same_command_goes_on_with_the_same_bits(gemma, monkeypatch):
    options = {"linear": False, "frozen": False}
    whole = compare_set(gemma.config(**options, name="whole"))
    runs: list[int] = []
    real = measure.run_variant

    def pressed(*args):
        runs.append(1)
        if len(runs) == 10:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "run_variant", pressed)
        with pytest.raises(KeyboardInterrupt):
            compare_set(gemma.config(**options, name="stopped"))
    folder = gemma.config(name="stopped").folder
    finished = len(list((folder / UNFINISHED).glob("sequences-*")))
    assert finished == 3  # three choices of layers each
    assert not (folder / SET_RESULT).exists()
    runs.clear()
    monkeypatch.setattr(measure, "run_variant", lambda *args: (runs.append(1), real(*args))[1])
    compare_set(gemma.config(**options, name="stopped"))
    assert len(runs) == 3 * (6 - finished)
    assert not (folder / UNFINISHED).exists()
    for file in (SET_RESULT, SUMMARY):
        assert (folder / file).read_bytes() == (whole / file).read_bytes()


def test_two_comparisons_of_one_set_do_not_mix_their_sums(gemma):
    config = gemma.config(name="twice")
    config.folder.mkdir(parents=True)
    with (
        WriterLock(config.folder / f"{UNFINISHED}.lock"),
        pytest.raises(Busy, match=r"is writing .*twice; wait for it, stop it, or choose another folder"),
    ):
        compare_set(config)


def test_linear_maps_that_were_fitted_are_not_fitted_again(gemma, monkeypatch):
    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure, "run_variant", dies)
        with pytest.raises(KeyboardInterrupt):
            compare_set(gemma.config(name="fitted"))
    monkeypatch.setattr("evaluate.sets.layers.fit", dies)
    compare_set(gemma.config(name="fitted"))


@pytest.mark.slow
def test_results_are_used_again_until_weights_or_options_change(gemma, monkeypatch, tmp_path, capsys):
    for layer in LAYERS:
        gemma.transcoders[layer].save(tmp_path / f"layer{layer}" / "run")
    config = gemma.config(run=tmp_path / "layer{layer}" / "run", linear=False, frozen=False)
    folder = compare_set(config)
    said = capsys.readouterr().out
    first = (folder / SET_RESULT).read_bytes()
    loaded: list[int] = []
    real = command.model_that_made
    monkeypatch.setattr(command, "model_that_made", lambda *args: (loaded.append(1), real(*args))[1])
    compare_set(config)
    assert (loaded, capsys.readouterr().out) == ([], said)
    compare_set(replace(config, force=True))
    assert len(loaded) == 1
    assert (folder / SET_RESULT).read_bytes() == first
    compare_set(replace(config, sequences=4))
    assert len(loaded) == 2
    (folder / REPORT).unlink()
    compare_set(replace(config, sequences=4))
    assert len(loaded) == 3
    run = Transcoder.load(tmp_path / "layer2" / "run")
    replace(run, b_dec=run.b_dec + 1).save(tmp_path / "layer2" / "run")
    compare_set(replace(config, sequences=4))
    assert len(loaded) == 4


def test_a_report_that_could_not_be_written_is_not_taken_for_one_of_the_new_figures(gemma, monkeypatch, capsys):
    config = gemma.config(linear=False, frozen=False, name="torn")
    compare_set(config)
    capsys.readouterr()

    def fails(*args):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(command, "publish", fails)
        with pytest.raises(OSError, match="full"):
            compare_set(replace(config, sequences=4))
    folder = compare_set(replace(config, sequences=4))
    result = read_set(folder)
    assert result is not None
    assert f"of {result.sequences:,} held-out sequences" in capsys.readouterr().out


def test_rows_in_a_step_do_not_change_results(gemma):
    found = []
    for rows in (2048, 7):
        config = gemma.config(frozen=False, batch_rows=rows, name=f"rows-{rows}")
        result = read_set(compare_set(config))
        assert result is not None
        found.append(figures(result))
    assert len(found[0]) > 50
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-7)


def test_each_replacement_sees_as_many_rows_as_are_asked_for(gemma, monkeypatch):
    seen: list[int] = []
    real = Transcoder.view

    def view(self, rows, norm):
        seen.append(len(rows))
        return real(self, rows, norm)

    monkeypatch.setattr(Transcoder, "view", view)
    compare_set(gemma.config(linear=False, frozen=False, batch_rows=10, name="few-rows"))
    assert max(seen) == 10
