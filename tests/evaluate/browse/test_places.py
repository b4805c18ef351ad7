"""What can be browsed beside a results folder: one run, a pushed repository, other projects' layouts, and the hub's."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from starlette.testclient import TestClient

from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export as export_pages
from evaluate.browse.folder import find_runs
from evaluate.browse.places import files_to_show, open_results
from evaluate.browse.server import make_app
from evaluate.compare.one_run import evaluate_run
from evaluate.config import EvaluateConfig
from evaluate.publish.config import PushConfig
from evaluate.publish.push import push
from store.config import ExportConfig, ExportSetConfig
from store.errors import Refused
from store.exports.export import export
from store.exports.sets import export_set
from tests.child import python
from tests.hub import serving
from tests.store.exports.making import run_of_layer
from tests.store.transcoders.making import write_circuit_tracer, write_scope1

CONTEXTS = 'class="contexts"'


def page(folder: Path, path: str = "") -> str:
    answer = TestClient(make_app(open_results(folder)), base_url="http://127.0.0.1").get(path or only_run(folder))
    assert answer.status_code == 200, answer.text
    return answer.text


def only_run(folder: Path, kind: str = "run") -> str:
    [name] = find_runs(folder)
    return f"/{kind}/{name}"


@pytest.fixture(scope="module")
def pushed(on_tiny_model, tmp_path_factory) -> Path:
    """The folder of a run with figures and features, as `push` makes it, with a layout."""
    run = shutil.copytree(on_tiny_model.run, tmp_path_factory.mktemp("pushed") / "mine")
    evaluate_run(EvaluateConfig(run=run, store=on_tiny_model.store, device="cpu"))
    push(PushConfig(run=run, repo="me/tiny", layouts="saelens", store=on_tiny_model.store, dry_run=True, features=3))
    return run / "hub"


def test_a_run_s_folder_and_what_push_makes_of_it_show_the_same_features(pushed):
    run = pushed.parent
    assert list(find_runs(run)) == ["mine"]
    figures = json.loads((run / "evaluation/metrics.json").read_text())
    for place in (run, pushed):
        assert f"{figures['fvu']:.4f}" in page(place)
        assert CONTEXTS in page(place, only_run(place, "feature") + "/0")
    body = re.compile(r'<section class="contexts">.*</ol></section>', re.DOTALL)
    ours, theirs = (body.search(page(place, only_run(place, "feature") + "/0"))[0] for place in (run, pushed))
    assert ours == theirs


SCRIPT = """
import sys
from pathlib import Path
from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export
from evaluate.browse.places import open_results
from evaluate.browse.folder import find_runs

def attempt(name, url):
    try:
        print(name, " ".join(find_runs(open_results(Path(url)))), sep="\\t")
    except ValueError as error:
        print(name, f"{type(error).__name__} {error}", sep="\\t")

export(BrowseExportConfig(results=Path("hf://me/tiny@v1"), out=Path(sys.argv[1])))
attempt("run", "hf://me/tiny")
attempt("layout", "hf://me/tiny/saelens")
attempt("set", "hf://me/others/set")
attempt("scope", "hf://me/others/layer_8/width_16k/average_l0_92")
attempt("root", "hf://me/others")
attempt("file", "hf://me/tiny/saelens/cfg.json")
attempt("unknown", "hf://me/none")
attempt("name", "hf://me")
attempt("revision", "hf://me/tiny@v2")
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
attempt("offline", "hf://me/tiny")
attempt("offline other", "hf://me/others/nothing")
attempt("offline root", "hf://me/others/layer_8")
"""


@pytest.fixture(scope="module")
def said(pushed, tmp_path_factory) -> dict[str, str]:
    """What each place on the hub ended with, `site` with the pages of a run there, and the files that were fetched."""
    folder = tmp_path_factory.mktemp("others")
    write_circuit_tracer(folder / "set", layers=(0, 1))
    write_scope1(folder)
    site = tmp_path_factory.mktemp("site") / "pages"
    environment = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    with serving() as (hub, endpoint):
        hub.add("me/tiny", pushed)
        hub.add("me/others", folder)
        lines = python("-c", SCRIPT, str(site), HF_ENDPOINT=endpoint, **environment).splitlines()
        fetched = sorted({path.partition("/resolve/")[2].partition("/")[2] for path in hub.asked if "/resolve/" in path})
    return dict(line.split("\t", 1) for line in lines if "\t" in line) | {"site": str(site), "fetched": " ".join(fetched)}


ROOT = f"me/tiny@{0:012x}"


@pytest.mark.parametrize(
    ("place", "end"),
    [
        ("run", ROOT),
        ("offline", ROOT),
        ("layout", f"me/tiny/saelens@{0:012x}"),
        ("set", f"me/others/set@{0:012x}"),
        ("scope", f"me/others/layer_8/width_16k/average_l0_92@{0:012x}"),
        ("root", "Refused me/others has no run or transcoder at 'its root'; name the folder that holds its files"),
        ("file", "Refused me/tiny has no run or transcoder at 'saelens/cfg.json'; name the folder"),
        ("unknown", "Refused the run or transcoder at hf:/me/none is not on the hub, or is private"),
        ("name", "Refused hf:/me is no place on the hub; write hf://user/repo/path"),
        ("revision", "Refused the run or transcoder at hf:/me/tiny@v2 has no such revision on the hub"),
        ("offline other", "Refused hf:/me/others/nothing is not among what was fetched before"),
    ],
)
def test_a_place_on_the_hub_is_browsed_or_refused_in_one_line(said, place, end):
    assert said[place].startswith(end)


def test_a_pushed_run_is_browsed_from_the_hub_without_fetching_its_weights(said, pushed, tmp_path):
    site = Path(said["site"])
    assert "activation_samples/features.parquet" in said["fetched"]
    assert "transcoder.safetensors" not in said["fetched"].split()
    assert not re.search(r"feature/\S+\.html", said["fetched"])
    found = (site / f"feature/{ROOT}/0.html").read_text()
    export_pages(BrowseExportConfig(results=pushed, out=tmp_path / "site"))
    local = (tmp_path / "site/feature/hub/0.html").read_text()
    body = re.compile(r'<section class="contexts">.*</ol></section>', re.DOTALL)
    assert body.search(found)[0] == body.search(local)[0]
    assert "make intervene RUN=" in local
    assert "make intervene RUN=" not in found  # it needs the weights


@pytest.mark.parametrize(("layout", "topk"), [("saelens", False), ("gemma-scope-2", False), ("sparsify", True)])
def test_an_export_shows_what_it_is_and_statistics_of_its_weights(tmp_path, layout, topk):
    ours = run_of_layer(tmp_path, 1, view="normed", **({"activation": "topk"} if topk else {}))
    out = tmp_path / "out"
    export(ExportConfig(run=tmp_path / "run1", layout=layout, out=out, store=tmp_path / "layer1"))
    text = page(out)
    assert f"A transcoder in the layout {layout}: its files hold no features and no figures." in text
    norms = np.linalg.norm(ours.W_dec.double().numpy(), axis=1)
    rows = dict(re.findall(r'<th scope="row">(W_dec|W_enc|threshold)</th>(.*?)</tr>', text))
    numbers = [f"{value:.3g}" for value in (norms.min(), np.sort(norms)[(len(norms) - 1) // 2], norms.max())]
    assert re.findall(r'data-label="(?:smallest|median|largest)">([^<]*)<', rows["W_dec"]) == numbers
    assert "10 x 12" in rows["W_dec"]
    for key, value in (("model", "tiny"), ("layer", 1), ("d_sae", 10)):
        assert f'<th scope="row">{key}</th><td>{value}</td>' in text
    assert '<th scope="row">gate</th><td>outputs differ by' in text
    assert "make features" not in text
    assert "FVU" not in page(out, "/")


def test_a_set_shows_every_layer(tmp_path):
    for layer in (0, 2):
        run_of_layer(tmp_path, layer, view="normed")
    export_set(ExportSetConfig(runs=(tmp_path / "run0", tmp_path / "run2"), out=tmp_path / "set"))
    text = page(tmp_path / "set")
    stored = load_file(tmp_path / "set/layer_2.safetensors")
    assert len(re.findall(r'<th scope="row">W_enc</th>', text)) == 3
    largest = f"{np.linalg.norm(stored['W_enc'], axis=1).max():.3g}"
    assert '<td data-label="layer">2</td><th scope="row">W_enc</th><td data-label="shape">12 x 10</td>' in text
    assert f'data-label="largest">{largest}</td>' in text
    assert '<th scope="row">silent_layers</th><td>[1]</td>' in text


def test_a_folder_of_exports_lists_them_and_a_results_folder_does_not(tmp_path):
    run_of_layer(tmp_path, 1, view="normed")
    for layout in ("saelens", "gemma-scope-2"):
        export(ExportConfig(run=tmp_path / "run1", layout=layout, out=tmp_path / "out" / layout, store=tmp_path / "layer1"))
    assert list(find_runs(tmp_path / "out")) == ["gemma-scope-2", "saelens"]
    assert list(find_runs(tmp_path)) == ["run1"]


def test_a_damaged_export_says_so_and_is_read_again_when_mended(tmp_path):
    run_of_layer(tmp_path, 1, view="normed")
    out = tmp_path / "out"
    export(ExportConfig(run=tmp_path / "run1", layout="saelens", out=out, store=tmp_path / "layer1"))
    weights = (out / "sae_weights.safetensors").read_bytes()
    (out / "sae_weights.safetensors").write_bytes(weights[:100])
    assert "sae_weights.safetensors is damaged" in page(out)
    (out / "sae_weights.safetensors").write_bytes(weights)
    assert "is damaged" not in page(out)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=f"file is a file; give the folder that holds it: --results {tmp_path}"):
        open_results(tmp_path / "file")
    with pytest.raises(Refused, match="none is not a folder; give --results, or make a run with make demo"):
        open_results(tmp_path / "none")


def test_weights_are_fetched_only_where_nothing_else_makes_a_run_of_a_folder():
    files = ["a/config.json", "a/transcoder.safetensors", "b/train_config.json", "b/transcoder.safetensors"]
    assert files_to_show("", files) == ["a/config.json", "a/transcoder.safetensors", "b/train_config.json"]
    assert files_to_show("b", [*files, "bc/transcoder.safetensors"]) == ["b/train_config.json"]
