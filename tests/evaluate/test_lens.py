"""The lens of promoted tokens: a store's own, pre-fitted ones as others save them, and what `features` writes of them."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from starlette.testclient import TestClient

from evaluate.browse.server import make_app
from evaluate.features.config import FeaturesConfig
from evaluate.features.samples import collect_samples
from evaluate.features.summary import read_summary
from evaluate.lens import LOGIT, choose_lens
from evaluate.promoted import tokens as promoted_tokens
from harvest.model.output_weights import OutputWeights
from store.disk.remote import Remote
from store.errors import Damaged, Refused
from store.lens.prefitted import read_prefitted
from store.lens.site_lens import SiteLens, save_lens
from store.shards.manifest import save_manifest
from store.shards.reader import Store, open_store
from tests.making import hash_of, make_store, normal
from tests.store.transcoders.making import make_transcoder

WIDTH = 10
"""Of the stores' mlp_out."""


def with_lens(store: Store, seed: int = 0) -> tuple[Store, torch.Tensor]:
    """A store to which a random lens is added, and the Jacobian of its mlp_out."""
    products = normal(2, WIDTH, WIDTH, seed=seed).double()
    samples = torch.tensor([6.0, 10.0], dtype=torch.float64)
    sites = {"mlp_out": SiteLens(products=products, samples=samples)}
    save_manifest(store.directory, save_lens(store.directory, store.manifest, sites, 2, passes=2, seed=0))
    return open_store(store.directory), (products[0] + products[1]).float() / 16


def prefitted(folder: Path, layers: dict[int, torch.Tensor], name: str = "tiny_jacobian_lens.pt") -> Path:
    """A lens in a folder, as anthropics/jacobian-lens saves it: 16-bit floats."""
    folder.mkdir(parents=True, exist_ok=True)
    matrices = {layer: matrix.half() for layer, matrix in layers.items()}
    content = {"J": matrices, "n_prompts": 100, "source_layers": sorted(layers), "d_model": WIDTH}
    torch.save(content, folder / name)
    return folder / name


@pytest.fixture
def config():
    return make_transcoder(d_in=12, d_out=WIDTH).config


def test_auto_takes_the_store_s_jacobian_lens_where_there_is_one(store, config):
    rows = normal(7, WIDTH, seed=3)
    gain = torch.linspace(0.5, 2, WIDTH)
    assert choose_lens("auto", store, config) == LOGIT
    assert torch.equal(LOGIT.carried(rows, gain), rows * gain)
    with pytest.raises(Refused, match=r"lens is jacobian, but .* has none of mlp_out: run `make metric`"):
        choose_lens("jacobian", store, config)
    store, jacobian = with_lens(store)
    assert choose_lens("logit", store, config) == LOGIT
    for name in ("auto", "jacobian"):
        lens = choose_lens(name, store, config)
        assert (lens.name, lens.source, lens.through_norm) == ("jacobian", "store", True)
        for row, carried in zip(rows, lens.carried(rows, gain), strict=True):
            torch.testing.assert_close(carried, jacobian @ row)


def test_a_lens_is_that_of_the_layer_that_a_run_predicts(store, config, tmp_path):
    other, jacobian = with_lens(make_store(tmp_path / "other", layer=2), seed=5)
    across = dataclasses.replace(store, target=other)
    lens = choose_lens("auto", across, config.model_copy(update={"target_layer": 2}))
    torch.testing.assert_close(lens.jacobian, jacobian)


def test_a_prefitted_lens_is_read_from_its_file_and_from_its_folder(store, config, tmp_path):
    layers = {layer: normal(WIDTH, WIDTH, seed=layer) for layer in range(3)}
    folder = tmp_path / "tiny"
    file = prefitted(folder / "jlens" / "Salesforce-wikitext", layers)
    (file.parent / "config.yaml").write_text("n_prompts: 100\n")
    for given in (file, folder):
        lens = choose_lens(str(given), store, config)
        assert (lens.name, lens.source, lens.through_norm) == ("jacobian", str(file), False)
        assert torch.equal(lens.jacobian, layers[1].half().float())  # make_store's layer
    for site, layer in (("mlp_out", 1), ("resid_post", 1), ("resid_pre", 0)):
        assert torch.equal(read_prefitted(file, 1, site, WIDTH), layers[layer].half().float())


def test_a_prefitted_lens_is_read_from_a_url(store, config, tmp_path):
    file = prefitted(tmp_path / "made", {1: torch.eye(WIDTH)})
    remote = Remote("memory://lenses/tiny_jacobian_lens.pt")
    remote.create(file.read_bytes())
    for url in (str(remote), str(remote.parent)):
        assert torch.equal(choose_lens(url, store, config).jacobian, torch.eye(WIDTH))
    with pytest.raises(Refused, match="memory://lenses/another.pt is not there"):
        choose_lens("memory://lenses/another.pt", store, config)


def test_a_prefitted_lens_that_does_not_fit_is_refused(store, config, tmp_path):
    file = prefitted(tmp_path / "a", {0: torch.eye(WIDTH)})
    with pytest.raises(Refused, match="has the layers 0, and mlp_out of layer 1 needs 1"):
        choose_lens(str(file), store, config)
    with pytest.raises(Refused, match="tells of the blocks' outputs, and the run predicts resid_mid"):
        choose_lens(str(file), store, config.model_copy(update={"target_site": "resid_mid"}))
    wide = prefitted(tmp_path / "b", {1: torch.eye(12)})
    with pytest.raises(Refused, match=r"is 12 x 12, and mlp_out of the store has width 10"):
        choose_lens(str(wide), store, config)
    broken = prefitted(tmp_path / "c", {1: torch.full((WIDTH, WIDTH), torch.nan)})
    with pytest.raises(Damaged, match="not finite at layer 1"):
        choose_lens(str(broken), store, config)
    prefitted(tmp_path / "b", {1: torch.eye(WIDTH)}, "lens.pt")
    with pytest.raises(Refused, match="holds 2 lenses; give one of them"):
        choose_lens(str(tmp_path / "b"), store, config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="holds no "):
        choose_lens(str(tmp_path / "empty"), store, config)
    with pytest.raises(Refused, match="lens is 'jacobain'.*did you mean jacobian"):
        choose_lens("jacobain", store, config)


def test_a_file_that_is_no_lens_is_damaged(store, config, tmp_path):
    file = prefitted(tmp_path, {1: torch.eye(WIDTH)})
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(Damaged, match="cannot be read"):
        choose_lens(str(file), store, config)
    torch.save({"jacobian_sum": {1: torch.eye(WIDTH)}, "n_done": 3}, file)  # an unfinished fit
    with pytest.raises(Damaged, match="holds no matrices J by layer"):
        choose_lens(str(file), store, config)


def test_a_lens_without_promoted_tokens_is_refused():
    with pytest.raises(
        Refused, match="lens is logit, but promoted tokens are left out; drop --no-promoted-tokens, or --lens"
    ):
        FeaturesConfig(lens="logit", promoted_tokens=False)


def test_features_say_which_lens_promoted_their_tokens(tmp_path, tiny_models, monkeypatch):
    tokenizer = tiny_models["gpt2"]
    made = make_store(tmp_path / "store", n_shards=8, context=64, shard_sequences=4, tokenizer_hash=hash_of(tokenizer))
    store, jacobian = with_lens(made)
    run = tmp_path / "results" / "tiny" / "layer1" / "ours"
    transcoder = make_transcoder(d_in=12, d_out=WIDTH, d_sae=20, prefix_sizes=(10, 20))
    transcoder.save(run)
    unembedding = normal(98, WIDTH, seed=9)
    gain = torch.linspace(0.5, 2, WIDTH)
    weights = OutputWeights(unembedding, gain)
    monkeypatch.setattr(promoted_tokens, "read_output_weights", lambda model, revision: weights)
    asked = FeaturesConfig(store=store.directory, run=run, tokenizer=tokenizer, device="cpu")

    def promoted(lens: str) -> tuple[torch.Tensor, str]:
        folder = collect_samples(dataclasses.replace(asked, lens=lens))
        table = pq.read_table(folder / "features.parquet").to_pylist()
        [said] = {row["lens"] for row in table}
        record = json.loads((folder / "feature_00003.json").read_text())
        assert record["lens"] == said == read_summary(folder).lens
        return torch.tensor([[token["logit"] for token in row["promoted"]] for row in table]), said

    for lens, carried in (("auto", transcoder.W_dec @ jacobian.T), ("logit", transcoder.W_dec * gain)):
        found, said = promoted(lens)
        assert said == ("logit" if lens == "logit" else "jacobian")
        torch.testing.assert_close(found, (carried @ unembedding.T).topk(10, dim=1).values, rtol=1e-4, atol=1e-4)
        page = (
            TestClient(make_app(tmp_path / "results"), base_url="http://127.0.0.1").get("/feature/tiny/layer1/ours/3").text
        )
        assert ("Jacobian lens" in page, "logit lens" in page) == (said == "jacobian", said == "logit")
    folder = run / "activation_samples"
    assert read_summary(folder).lens_source is None
    assert promoted(str(prefitted(tmp_path / "p", {1: torch.eye(WIDTH)})))[1] == "jacobian"
    assert read_summary(folder).lens_source.endswith("tiny_jacobian_lens.pt")
    collect_samples(dataclasses.replace(asked, promoted_tokens=False, force=True))
    assert read_summary(folder).lens is None
    summary = json.loads((folder / "collection_summary.json").read_text())
    for key in ("lens", "lens_source"):
        del summary[key]
    (folder / "collection_summary.json").write_text(json.dumps(summary))
    assert read_summary(folder).lens == "logit"
