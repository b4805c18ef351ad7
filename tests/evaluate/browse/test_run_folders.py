"""What the browser says of a run beyond its own files: its data, its sweep, and what is left out of an export."""

import json
import re
import shutil

import pytest
from starlette.testclient import TestClient

from evaluate.browse import folder as folders
from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export
from evaluate.browse.feature_views import random_latent
from evaluate.browse.folder import find_runs, open_folder
from evaluate.browse.server import make_app
from evaluate.model.control import controls_of
from store.shards.origin import write_origin
from store.shards.reader import Store
from tests.evaluate.browse.making import D_SAE, RUN
from tests.making import make_store


def runs_page(results) -> str:
    return TestClient(make_app(results), base_url="http://127.0.0.1").get("/").text


def test_runs_of_several_stores_name_their_data(results, store: Store, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    assert "badge data" not in runs_page(copy)
    other = copy / "tiny/layer1/other"
    shutil.copytree(copy / RUN, other)
    write_origin(other, make_store(tmp_path / "another", seed=5, dataset="tales"))
    assert open_folder("other", other).data.startswith("tales ")
    page = runs_page(copy)
    assert len(re.findall(r'badge data">tales ', page)) == 1
    assert len(re.findall(r'badge data">made up ', page)) == 2
    assert "each run names its data set and store" in page


def test_a_run_of_a_sweep_shows_the_figures_of_its_summary(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    run = copy / "tiny/layer1/sweep/k4"
    shutil.copytree(copy / RUN, run)
    shutil.rmtree(run / "evaluation")
    shutil.rmtree(run / "comparison")
    assert "fvu" not in open_folder("k4", run).figures
    (run.parent / "summary.json").write_text(json.dumps([{"run": "k4", "fvu": 0.3217, "l0_mean": 4.2}]))
    assert open_folder("k4", run).figures["fvu"] == 0.3217
    assert "0.3217" in runs_page(copy)
    (run.parent / "summary.json").write_text("[1")
    assert "summary.json cannot be read" in open_folder("k4", run).problems[0]


def test_the_list_tells_runs_over_seeds_and_rates_apart(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    (copy / RUN / "train_config.json").write_text(json.dumps({"lr": 0.008, "tokens": 200_000, "seed": 3, "k": 4}))
    assert "<small>lr 0.008, 200,000 rows, seed 3</small>" in runs_page(copy)
    assert "unfinished" not in runs_page(copy)
    begun = copy / "tiny/layer1/begun"
    begun.mkdir()
    shutil.copy(copy / RUN / "train_config.json", begun)
    assert runs_page(copy).count('<span class="badge">unfinished</span>') == 1
    (copy / RUN / "train_config.json").write_text(json.dumps({"lr": None, "seed": 3}))
    assert "<small>seed 3</small>" in runs_page(copy)


def test_an_export_says_on_the_command_line_what_it_leaves_out(results, tmp_path, caplog):
    export(BrowseExportConfig(results=results, out=tmp_path / "site", features=7))
    said = [record.getMessage() for record in caplog.records if "get a page" in record.getMessage()]
    words = f"only the first 7 of {D_SAE} features get a page; --features {D_SAE} writes all (ARGS='--features {D_SAE}'"
    assert len(said) == 1
    assert f"{RUN}: {words}" in said[0]


def test_a_feature_s_page_has_a_command_to_copy_and_a_random_latent(results, client):
    page = client.get(f"/feature/{RUN}/3").text
    assert f"make intervene RUN={results / RUN} ARGS=&#39;--text &#34;...&#34; --ablate 3 --control&#39;" in page
    assert re.search(rf'href="/feature/{RUN}/(\d+)"[^>]*>random latent<', page)[1] != "3"
    [control] = controls_of(results / RUN, [3], 0)
    assert f'Control: <a href="/feature/{RUN}/{control.control}"' in page


@pytest.mark.parametrize("latent", [0, 40])
def test_a_random_latent_fires_and_is_another_one(results, latent):
    features = open_folder(RUN, results / RUN).features()
    drawn = {random_latent(features, latent) for _ in range(30)}
    assert latent not in drawn
    assert all(features.columns["fired"][each] > 0 for each in drawn)
    assert len(drawn) > 1


def test_many_runs_are_each_read_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    for number in range(300):
        (tmp_path / f"run{number}").mkdir()
        (tmp_path / f"run{number}" / "train_config.json").write_text("{}")
    read = []
    monkeypatch.setattr(
        folders, "read_run", lambda name, folder, real=folders.read_run: (read.append(name), real(name, folder))[1]
    )
    assert len(find_runs(tmp_path)) == len(find_runs(tmp_path)) == len(read) == 300
    (tmp_path / "run7" / "train_config.json").write_text('{"k": 1}')
    assert find_runs(tmp_path)["run7"].config == {"k": 1}
    assert read[300:] == ["run7"]
