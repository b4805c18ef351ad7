"""A finished run in other projects' layouts: the same outputs, nothing half written, and refusals that name the cure."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from store.disk.files import write_tensors
from store.errors import Damaged, Refused
from store.exports import gate as module
from store.exports.export import ExportConfig, export
from store.shards.origin import write_origin
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from store.transcoders.convert import to_normed, to_rms
from store.transcoders.gemma_scope import load_scope2
from store.transcoders.layouts import LAYOUTS, Holds, load_folder, load_run
from store.transcoders.legacy import standardising
from store.transcoders.saelens import load_saelens
from store.transcoders.transcoder import Transcoder
from store.views import Norm
from tests.making import make_norm, make_recipe, make_rows
from tests.rooms import ROOMS
from tests.store.exports.making import square_store
from tests.store.transcoders.making import SAELENS, make_transcoder

LAYERNORM = Norm(kind="layernorm", eps=1e-5, gain=torch.linspace(-2, 3, 12), bias=torch.linspace(1, -1, 12))


def make_run(folder: Path, store: Store, **changes) -> Transcoder:
    t = make_transcoder(**({"d_in": 12, "d_out": 10, "store_fingerprint": store.fingerprint} | changes))
    t.save(folder)
    return t


@pytest.fixture
def square(tmp_path) -> Store:
    return square_store(tmp_path / "store")


def options(tmp_path: Path, trained_on: Store, layout: str, **changes) -> ExportConfig:
    return ExportConfig(
        **({"run": tmp_path / "run", "layout": layout, "out": tmp_path / "out", "store": trained_on.directory} | changes)
    )


def heldout_inputs(t: Transcoder, store: Store) -> torch.Tensor:
    [shard] = store.manifest.of_split("heldout")[:1]
    return t.view(store.array(shard, "resid_mid")[: shard.kept], store.norm)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("layout", "view", "written"),
    [
        ("gemma-scope-1", "rms", "rms"),
        ("gemma-scope-1", "normed", "rms"),
        ("gemma-scope-2", "rms", "normed"),
        ("gemma-scope-2", "normed", "normed"),
        ("saelens", "raw", "raw"),
        ("saelens", "rms", "rms"),
        ("saelens", "normed", "normed"),
        ("run", "rms", "rms"),
    ],
)
def test_an_export_computes_what_the_run_does(tmp_path, store, layout, view, written, skip):
    if skip and not LAYOUTS[layout].holds.skip:
        pytest.skip("it has no place for a skip")
    t = make_run(tmp_path / "run", store, view=view, skip=skip)
    said = export(options(tmp_path, store, layout))
    again = load_folder(tmp_path / "out", 1, "")
    assert again.config.view == written
    x, x_again = heldout_inputs(t, store), heldout_inputs(again, store)
    torch.testing.assert_close(again(x_again), t(x), rtol=1e-4, atol=1e-4)
    assert str(tmp_path / "out") in said
    assert f"on {min(256, len(x))} held-out rows" in said
    assert (f"instead of {view}" in said) == (view != written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "store"]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("view", "asked"), [("raw", None), ("rms", None), ("normed", None), ("rms", "normed")])
@pytest.mark.parametrize("layout", ["circuit-tracer", "sparsify"])
def test_an_export_with_one_width_computes_what_the_run_does(tmp_path, square, layout, view, asked, skip):
    activation = LAYOUTS[layout].holds.activation
    t = make_run(tmp_path / "run", square, view=view, skip=skip, d_out=12, activation=activation)
    if layout == "sparsify" and view == "raw":
        with pytest.raises(Refused, match="reads the view raw, of which sparsify knows nothing; train with --view normed"):
            export(options(tmp_path, square, layout))
        return
    said = export(options(tmp_path, square, layout, view=asked))
    again = load_folder(tmp_path / "out", 1, "tiny")
    assert again.config.view == (asked or ("normed" if layout == "sparsify" else view))
    x, x_again = heldout_inputs(t, square), heldout_inputs(again, square)
    torch.testing.assert_close(again(x_again), t(x), rtol=1e-4, atol=1e-4)
    assert "gate: outputs differ by" in said


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("circuit-tracer", {"activation": "topk"}, "would run it as a plain ReLU.*train with batchtopk"),
        (
            "circuit-tracer",
            {"d_out": 10},
            "widths 12 -> 10, but circuit-tracer has one width for both; write it as saelens",
        ),
        ("gemma-scope-1", {"skip": True}, "skip connection, which gemma-scope-1 has no place for; train without --skip"),
        ("gemma-scope-1", {"view": "raw"}, "gemma-scope-1 knows nothing; train with --view rms"),
        ("sparsify", {}, "has thresholds, but sparsify keeps the k largest latents; train with --activation topk"),
    ],
)
def test_what_the_layouts_of_one_width_cannot_say_is_refused(tmp_path, square, layout, changes, message):
    make_run(tmp_path / "run", square, **({"d_out": 12} | changes))
    with pytest.raises(Refused, match=message):
        export(options(tmp_path, square, layout))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


def test_a_name_that_circuit_tracer_would_misread_is_refused(tmp_path, square):
    make_run(tmp_path / "run", square, d_out=12)
    with pytest.raises(Refused, match="has 'gemma-scope' in its name, and circuit-tracer reads .* choose another --out"):
        export(options(tmp_path, square, "circuit-tracer", out=tmp_path / "our-gemma-scope-2"))
    export(options(tmp_path, square, "gemma-scope-2", out=tmp_path / "our-gemma-scope-2"))


@pytest.mark.parametrize("layout", ["gemma-scope-2", "saelens", "run"])
def test_a_run_is_exported_from_its_folder_alone(tmp_path, store, layout, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = make_run(tmp_path / "run", store, view="rms")
    write_origin(tmp_path / "run", store)
    x = heldout_inputs(t, store)
    rows = store.array(store.manifest.of_split("heldout")[0], "resid_mid")[: len(x)]
    store.directory.rename(tmp_path / "moved")
    said = export(options(tmp_path, store, layout, store=None))
    again = load_folder(tmp_path / "out", 0, "")
    torch.testing.assert_close(again(again.view(rows, store.norm)), t(x), rtol=1e-4, atol=1e-4)
    assert "on 256 random rows" in said
    recorded = (tmp_path / "out/origin.json").exists() and (tmp_path / "out/norm.safetensors").exists()
    assert recorded == (layout == "run")


def test_the_gain_is_divided_out_row_by_row(tmp_path, store):
    t = make_run(tmp_path / "run", store, skip=True)
    export(options(tmp_path, store, "gemma-scope-2"))
    again = load_scope2(tmp_path / "out")
    torch.testing.assert_close(again.W_enc * make_norm().gain[:, None], t.W_enc)
    torch.testing.assert_close(again.W_skip * make_norm().gain, t.W_skip)
    for name in ("b_enc", "W_dec", "b_dec", "threshold"):
        assert torch.equal(getattr(again, name), getattr(t, name))


@pytest.mark.parametrize("skip", [False, True])
def test_a_layernorms_bias_is_folded_in_too(skip):
    t, rows = make_transcoder(d_in=12, d_out=10, skip=skip), torch.randn(20, 12) * 30
    normed = to_normed(t, LAYERNORM)
    torch.testing.assert_close(normed(normed.view(rows, LAYERNORM)), t(t.view(rows, LAYERNORM)), rtol=1e-3, atol=1e-3)
    back = to_rms(normed, LAYERNORM)
    assert (normed.config.view, back.config.view) == ("normed", "rms")
    for name, array in t.arrays().items():
        torch.testing.assert_close(back.arrays()[name], array, rtol=1e-4, atol=1e-4)


def test_saelens_is_told_another_hook_where_the_norm_is_a_layernorm(tmp_path):
    recipe = make_recipe()
    with StoreWriter(tmp_path / "store", recipe, LAYERNORM) as writer:
        for number in range(3):
            writer.append(make_rows(number, recipe))
    store = open_store(tmp_path / "store")
    t = make_run(tmp_path / "run", store, view="rms")
    said = export(options(tmp_path, store, "saelens"))
    assert "reads the view normed instead of rms" in said
    config = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.1.mlp.hook_in"
    again = load_saelens(tmp_path / "out")
    torch.testing.assert_close(again(heldout_inputs(again, store)), t(heldout_inputs(t, store)), rtol=1e-4, atol=1e-4)


def test_a_layout_that_does_not_list_the_kind_of_norm_is_refused(tmp_path, store, monkeypatch):
    make_run(tmp_path / "run", store, view="rms")
    bare = replace(LAYOUTS["saelens"], holds=Holds(views={"layernorm": ("normed",)}))
    monkeypatch.setitem(LAYOUTS, "saelens", bare)
    with pytest.raises(
        Refused, match="reads the view rms of a model whose norm is RMSNorm, of which saelens knows nothing"
    ):
        export(options(tmp_path, store, "saelens"))
    assert not (tmp_path / "out").exists()


def test_saelens_files_are_what_sae_lens_asks_for(tmp_path, store):
    made = SAELENS
    make_run(tmp_path / "run", store, skip=True)
    export(options(tmp_path, store, "saelens"))
    ours, theirs = (json.loads((folder / "cfg.json").read_text()) for folder in (tmp_path / "out", made))
    assert ours.keys() == theirs.keys()
    assert theirs["metadata"].keys() <= ours["metadata"].keys()
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}
    same = ("architecture", "dtype", "apply_b_dec_to_input", "normalize_activations", "reshape_activations")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours["metadata"]["hook_name"] == "blocks.1.ln2.hook_normalized"
    assert int(ours["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    files = [load_file(folder / "sae_weights.safetensors") for folder in (tmp_path / "out", made)]
    assert files[0].keys() == files[1].keys()
    assert files[0]["W_enc"].shape == (ours["d_in"], ours["d_sae"]) == (12, 10)
    assert files[0]["W_skip"].shape == (ours["d_out"], ours["d_in"]) == (10, 12)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("gemma-scope-2", {"view": "raw"}, "--view normed"),
        ("gemma-scope-2", {"activation": "topk"}, "train with batchtopk"),
        ("saelens", {"activation": "topk"}, "train with batchtopk"),
        ("saelens", {"target_layer": 2}, "of one layer"),
        ("saelens", {"source_site": "mlp_out"}, "from resid_mid to mlp_out"),
        (
            "llamascopium",
            {},
            "llamascopium can only be read; choose from circuit-tracer, delphi, gemma-scope-1, gemma-scope-2",
        ),
        ("gemma-scop-2", {}, "there is no layout 'gemma-scop-2'; .*; did you mean gemma-scope-2?"),
        ("neuronpedia", {}, "takes features, not weights: make export-features writes them"),
        ("onnx", {}, "there is no layout 'onnx'; choose from .*, run, saelens, sparsify$"),
        ("saelens", {"store_fingerprint": "0" * 32}, "was trained on store 0000"),
    ],
)
def test_what_a_layout_cannot_say_is_refused_and_nothing_is_written(tmp_path, store, layout, changes, message):
    make_run(tmp_path / "run", store, **changes)
    with pytest.raises(ValueError, match=message):
        export(options(tmp_path, store, layout))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


def test_a_skip_without_a_place_for_it_is_refused(tmp_path, store, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "bare", replace(LAYOUTS["saelens"], holds=Holds(views={"rms": ("rms",)}, skip=False)))
    make_run(tmp_path / "run", store, skip=True)
    with pytest.raises(ValueError, match="train without --skip"):
        export(options(tmp_path, store, "bare"))


def test_a_standardised_legacy_run_can_only_be_written_as_a_run(tmp_path, store):
    legacy = standardising(make_transcoder(d_in=12, d_out=10, view="raw"))
    legacy.save(tmp_path / "run")
    with pytest.raises(ValueError, match="standardises its input"):
        export(options(tmp_path, store, "saelens"))
    export(options(tmp_path, store, "run"))
    assert load_run(tmp_path / "out").config == legacy.config


def test_a_gain_of_zero_is_refused(tmp_path, store):
    gain = make_norm().gain
    gain[[3, 7]] = 0
    write_tensors(store.directory / "norm.safetensors", {"gain": gain})
    make_run(tmp_path / "run", store)
    with pytest.raises(ValueError, match="gain is 0 in 2 dimensions.* train with --view normed"):
        export(options(tmp_path, store, "gemma-scope-2"))


@pytest.mark.parametrize("layout", ["gemma-scope-2", "saelens"])
def test_without_a_store_a_view_that_needs_its_norm_is_refused(tmp_path, store, layout, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", store)
    with pytest.raises(ValueError, match="give --store"):
        export(options(tmp_path, store, layout, store=None))
    make_run(tmp_path / "run", store, view="normed")
    assert "on 256 random rows" in export(options(tmp_path, store, layout, store=None))


def test_the_default_store_is_found_unless_it_is_another_one(tmp_path, store, monkeypatch):
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    store.directory.rename(tmp_path / "data" / "tiny" / "layer1")
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", store)
    assert "held-out rows" in export(options(tmp_path, store, "gemma-scope-2", store=None))
    make_run(tmp_path / "run", store, store_fingerprint="0" * 32, view="normed")
    assert "random rows" in export(options(tmp_path, store, "gemma-scope-2", store=None, out=tmp_path / "second"))


def test_a_folder_that_holds_something_is_left_alone(tmp_path, store):
    make_run(tmp_path / "run", store)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder; choose another --out"):
        export(options(tmp_path, store, "saelens"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes"]
    (tmp_path / "out" / "notes").unlink()
    export(options(tmp_path, store, "saelens"))
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize("layout", ["gemma-scope-2", "run", "saelens"])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip"])
def test_files_that_compute_something_else_are_not_kept(tmp_path, store, layout, name, monkeypatch):
    """The reader that says so shares nothing with the writer."""
    save = LAYOUTS[layout].save

    def save_wrongly(transcoder: Transcoder, directory: Path) -> None:
        save(replace(transcoder, **{name: getattr(transcoder, name) * 2}), directory)

    monkeypatch.setitem(LAYOUTS, layout, replace(LAYOUTS[layout], save=save_wrongly))
    t = make_run(tmp_path / "run", store, view="normed", skip=True)
    replace(t, threshold=t.threshold * 0 + 1).save(tmp_path / "run")
    with pytest.raises(Refused, match=r"differ from the run's by .* nothing was kept: the writer of this layout is wrong"):
        export(options(tmp_path, store, layout))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


def test_a_failing_gate_ends_the_command_with_exit_code_1(tmp_path, store, monkeypatch, capsys):
    make_run(tmp_path / "run", store)
    monkeypatch.setattr(module, "TOLERANCE", 1e-12)
    words = ["store", "export", str(tmp_path / "run"), "--layout", "saelens", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*words, "--store", str(store.directory)])
    with pytest.raises(SystemExit) as end:
        ROOMS["store"].main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("store: error: the files give ")
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


def test_what_the_gate_found_stands_beside_the_export(tmp_path, store):
    make_run(tmp_path / "run", store)
    said = export(options(tmp_path, store, "saelens"))
    card = json.loads((tmp_path / "out" / "export.json").read_text())
    [found] = card["gate"]
    assert f"gate: outputs differ by {found['relative_error']:.1e} (relative) on {found['n_rows']} held-out rows" in said
    assert found["relative_error"] < found["tolerance"] == 1e-5
    assert found["fvu"] is None
    assert (card["layout"], card["model"], card["layer"], card["view"]) == ("saelens", "tiny", 1, "rms")
    assert card["tested_with"] == "sae-lens 6.54.12"
    assert card["input_hook"] == "blocks.1.ln2.hook_normalized"
    assert card["output_hook"] == "blocks.1.hook_mlp_out"
    assert card["store_fingerprint"] == store.fingerprint


def said_of(folder: Path) -> tuple[str, int | None, tuple[int, ...]]:
    config = load_folder(folder, 1, "tiny").config
    return config.name, config.k, config.prefix_sizes


@pytest.mark.parametrize(
    ("layout", "dtype"), [("saelens", "float32"), ("saelens", "bfloat16"), ("gemma-scope-1", "float32")]
)
def test_name_k_and_prefixes_come_back_from_the_card_beside_an_export(tmp_path, store, layout, dtype):
    make_run(tmp_path / "run", store, k=3, name="Matryoshka")
    export(options(tmp_path, store, layout, dtype=dtype))
    assert said_of(tmp_path / "out") == ("Matryoshka", 3, (2, 5, 10))
    if layout == "gemma-scope-1":
        assert said_of(tmp_path / "out" / "params.npz") == ("Matryoshka", 3, (2, 5, 10))
    card = tmp_path / "out" / "export.json"
    said = json.loads(card.read_text())
    for wrong in ({"prefix_sizes": [2, 5]}, {"k": "many"}, {"k": 50}):
        card.write_text(json.dumps(said | wrong))
        with pytest.raises(Damaged, match="export.json does not fit the weights beside it .*; restore it, or delete it"):
            load_folder(tmp_path / "out", 1, "tiny")


def test_a_card_beside_other_weights_says_nothing(tmp_path, store):
    """As where one export was copied over another of the same layer and width."""
    make_run(tmp_path / "run", store, name="Matryoshka")
    export(options(tmp_path, store, "saelens"))
    other = make_transcoder(d_in=12, d_out=10)
    LAYOUTS["saelens"].save(replace(other, b_enc=other.b_enc + 1), tmp_path / "out")
    assert said_of(tmp_path / "out") == ("SAELens jumprelu_transcoder, 10 latents", None, (10,))


def test_what_the_files_themselves_say_stands_above_the_card(tmp_path, square):
    make_run(tmp_path / "run", square, d_out=12, view="normed", activation="topk", name="ours")
    export(options(tmp_path, square, "sparsify"))
    settings = tmp_path / "out" / "cfg.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"k": 2}))
    assert said_of(tmp_path / "out") == ("ours", 2, (2, 5, 10))
    export(options(tmp_path, square, "run", out=tmp_path / "again"))
    settings = tmp_path / "again" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"name": "renamed"}))
    assert said_of(tmp_path / "again")[0] == "renamed"


@pytest.mark.parametrize("layout", ["gemma-scope-2", "saelens"])
def test_bfloat16_is_written_on_request_and_what_it_costs_is_said(tmp_path, store, layout):
    t = make_run(tmp_path / "run", store, view="normed", skip=True)
    said = export(options(tmp_path, store, layout, dtype="bfloat16"))
    [weights] = (tmp_path / "out").glob("*.safetensors")
    assert {array.dtype for array in load_file(weights).values()} == {torch.bfloat16}
    card = json.loads((tmp_path / "out" / "export.json").read_text())
    [found] = card["gate"]
    x = heldout_inputs(t, store)
    [shard] = store.manifest.of_split("heldout")[:1]
    target = store.array(shard, "mlp_out")[: shard.kept].double()
    around = (target - target.mean(0)).square().sum()
    again = load_folder(tmp_path / "out", 1, "")
    for key, transcoder in (("fvu", t), ("fvu_written", again)):
        assert found[key] == pytest.approx(float((target - transcoder(x).double()).square().sum() / around), rel=1e-4)
    for key, transcoder in (("l0", t), ("l0_written", again)):
        passing = x.float() @ transcoder.W_enc.float() + transcoder.b_enc.float() > transcoder.threshold.float().clamp_min(
            0
        )
        assert found[key] == pytest.approx(float(passing.sum() / len(x)), abs=0.1)
    assert card["dtype"] == "bfloat16"
    assert found["relative_error"] < 1e-5
    assert "rounding changes FVU by " in said
    assert f", and L0 from {found['l0']:.1f} to {found['l0_written']:.1f}" in said


def test_bfloat16_is_refused_where_a_layout_holds_float32_alone(tmp_path, store):
    make_run(tmp_path / "run", store)
    with pytest.raises(Refused, match="run holds float32 alone; leave out --dtype bfloat16"):
        export(options(tmp_path, store, "run", dtype="bfloat16"))


def test_a_view_is_chosen_where_the_layout_has_several(tmp_path, store):
    t = make_run(tmp_path / "run", store, view="rms", skip=True)
    export(options(tmp_path, store, "saelens", view="normed"))
    again = load_folder(tmp_path / "out", 0, "")
    assert again.config.view == "normed"
    torch.testing.assert_close(again(heldout_inputs(again, store)), t(heldout_inputs(t, store)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "view", "message"),
    [
        ("saelens", "raw", "reads the view rms, which no linear map takes to raw; train with --view raw"),
        ("gemma-scope-2", "rms", "gemma-scope-2 cannot say the view rms of this model; choose from normed"),
        ("run", "normed", "run keeps the view of the run, rms; leave out --view"),
    ],
)
def test_a_view_that_cannot_be_written_is_refused(tmp_path, store, layout, view, message):
    make_run(tmp_path / "run", store, view="rms")
    with pytest.raises(Refused, match=message):
        export(options(tmp_path, store, layout, view=view))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, store, monkeypatch):
    def fail(transcoder: Transcoder, directory: Path) -> None:
        (directory / "cfg.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(LAYOUTS, "saelens", replace(LAYOUTS["saelens"], save=fail))
    make_run(tmp_path / "run", store)
    with pytest.raises(OSError, match="No space left"):
        export(options(tmp_path, store, "saelens"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


def test_the_options_say_which_layouts_can_be_written():
    import inspect

    text = inspect.getsource(ExportConfig)
    assert all(name in text for name, layout in LAYOUTS.items() if layout.save is not None)


def test_another_projects_transcoder_is_made_a_run_only_on_a_store_that_it_fits(tmp_path, store):
    from store.transcoders.saelens import save_saelens

    t = make_transcoder(d_in=12, d_out=10)
    save_saelens(t, tmp_path / "run")
    with pytest.raises(Refused, match="give with --store one of its layer"):
        export(options(tmp_path, store, "run", store=None))
    save_saelens(replace(t, config=t.config.model_copy(update={"layer": 2})), tmp_path / "run")
    with pytest.raises(Refused, match=r"is for layer 2 with widths 12 -> 10, but \S+ holds layer 1"):
        export(options(tmp_path, store, "run"))
    assert not (tmp_path / "out").exists()
