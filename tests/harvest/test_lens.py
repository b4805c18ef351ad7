"""The Jacobian lens of a store: against dense Jacobians of plain transformers in float64, and its files."""

import json
import operator
from dataclasses import replace

import pytest
import torch
import transformers
import xxhash
from safetensors.torch import load_file, save_file

from harvest.config import HarvestConfig
from harvest.info import describe
from harvest.loop import harvest
from harvest.metric import estimate as estimating
from harvest.metric.add import add_metric
from harvest.metric.estimate import Estimate
from harvest.metric.gradients import gradients, places_in
from harvest.metric.lens import Directions, lens_sums, orthogonal
from harvest.model.families import FAMILIES
from harvest.model.loading import load_model
from harvest.model.unembedding import Unembedding
from harvest.preflight import visit
from harvest.store_config import MetricConfig
from store.config import VerifyConfig
from store.errors import Damaged, Refused
from store.lens.site_lens import SiteLens, read_lens
from store.shards.manifest import load_manifest
from store.shards.reader import open_store
from store.verify import verify
from tests.harvest.making import harvest_with_metric
from tests.harvest.model.making import N_LAYERS, TINY, save_tiny
from tests.making import BOS

CPU = torch.device("cpu")
WIDTH = 16
ARCHITECTURES = ("Gemma2ForCausalLM", "Gemma3ForCausalLM", "GPT2LMHeadModel", "LlamaForCausalLM")
FINAL_NORMS = {"GPT2LMHeadModel": "transformer.ln_f"}


@pytest.fixture
def config(tiny_models, text_file, tmp_path) -> HarvestConfig:
    return harvest_with_metric(tiny_models["gemma2"], text_file, tmp_path / "store")


def dense_jacobian(
    folder, architecture: str, layer: int, tokens: torch.Tensor, kept: torch.Tensor, site: str = "mlp_out"
) -> torch.Tensor:
    """The mean of d h / d site over the kept tokens, h the output of the final norm at the same token; float64."""
    model_class = getattr(transformers, architecture)
    model = model_class.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    family = FAMILIES[architecture]
    block = operator.attrgetter(family.blocks)(model)[layer]
    norm = operator.attrgetter(FINAL_NORMS.get(architecture, "model.norm"))(model)
    total = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for row, mask in zip(tokens, kept, strict=True):

        def last_hidden(shift: torch.Tensor, row: torch.Tensor = row) -> torch.Tensor:
            seen = []

            def shifted(module, args, out):
                return (out[0] + shift, *out[1:]) if isinstance(out, tuple) else out + shift

            if site == "mlp_out":
                first = operator.attrgetter(family.mlp_out)(block).register_forward_hook(shifted)
            else:
                first = block.register_forward_pre_hook(lambda module, args: (args[0] + shift, *args[1:]))
            second = norm.register_forward_hook(lambda module, args, out: seen.append(out))
            model(row[None])
            first.remove()
            second.remove()
            return seen[0][0]

        shift = torch.zeros(len(row), WIDTH, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(last_hidden, shift, vectorize=True)
        for token in mask.nonzero().squeeze(1).tolist():
            total += jacobian[token, :, token]
    return total / kept.sum()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_complete_basis_gives_the_mean_of_the_dense_jacobians(architecture, tiny_models, tmp_path):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])
    options = TINY[architecture]
    if architecture == "Gemma2ForCausalLM":
        options = (options[0], options[1] | {"final_logit_softcapping": 3.0})
    folder = save_tiny(tmp_path, architecture, options, tokenizer)
    model = load_model(folder, N_LAYERS - 1, CPU, torch.float32)
    tokens = torch.randint(3, 95, (1, 6), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = BOS
    names = places_in((0, 1, N_LAYERS - 1), ("mlp_out", "resid_post"))
    sums = dict.fromkeys(names, SiteLens.zeros(WIDTH))
    kept = torch.ones(1, 6, dtype=torch.bool)
    kept[:, 0] = False
    for token in kept[0].nonzero().squeeze(1).tolist():
        here = torch.zeros_like(kept)
        here[0, token] = True
        for axis in range(WIDTH):
            directions = torch.zeros(1, 6, WIDTH)
            directions[0, token, axis] = WIDTH**0.5
            found = gradients(model, Unembedding.of(model), tokens, names, directions=[directions])
            assert found.of_labels == {}
            for place, gradient in found.of_directions[0].items():
                sums[place] = sums[place].plus(lens_sums(gradient, directions, here, axis))
    for layer in (0, 1, N_LAYERS - 1):
        exact = dense_jacobian(folder, architecture, layer, tokens, kept)
        torch.testing.assert_close(sums[layer, "mlp_out"].jacobian.double(), exact, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums[layer, "resid_post"].jacobian, sums[layer, "mlp_out"].jacobian)


def test_the_estimate_comes_to_the_mean_of_the_dense_jacobians(config, tiny_models):
    harvest(replace(config, shard_tokens=32, tokens=64, metric_sequences=0, sites=("mlp_out",), layer=0))
    store = open_store(config.directory)
    model = load_model(config.model, 0, CPU, torch.float32)
    sums = SiteLens.zeros(WIDTH)
    errors = []
    for seed in range(48):
        under_way = Estimate(model, {0: store}, 2, seed, metric=False)
        found = under_way.run()
        assert found.metric == {}
        sums = sums.plus(found.lens[0, "mlp_out"])
        under_way.forget()
        if seed in (11, 47):
            drawn = under_way.drawn
            exact = dense_jacobian(tiny_models["gemma2"], "Gemma2ForCausalLM", 0, drawn.tokens, drawn.kept)
            errors.append((sums.jacobian - exact).norm() / exact.norm())
    assert errors[1] < 0.3
    assert errors[1] < 0.7 * errors[0]  # noise alone is left: directions that go together would leave 0.4


def test_directions_are_orthogonal_and_do_not_depend_on_the_batch():
    kept = torch.rand(8, 20, generator=torch.Generator().manual_seed(0)) > 0.3
    directions = Directions(kept, 6, 3)
    together = directions.at(slice(2, 7), 1)
    alone = torch.cat([directions.at(slice(number, number + 1), 1) for number in range(2, 7)])
    assert torch.equal(together, alone)
    assert not together[~kept[2:7]].any()
    rows = orthogonal(torch.arange(18), 6, 1)
    for block in rows.split(6):
        torch.testing.assert_close(block @ block.T, 6 * torch.eye(6))
        torch.testing.assert_close(block.T @ block, 6 * torch.eye(6))
    assert not torch.equal(rows[:6], rows[6:12])
    passes = [directions.at(slice(0, 8), number)[0::2][kept[0::2]] for number in (0, 1)]
    every = torch.cat(passes)
    whole = every[: len(every) // 6 * 6]
    torch.testing.assert_close(whole.T @ whole, len(whole) * torch.eye(6), rtol=1e-4, atol=1e-4)


def test_a_harvest_ends_with_the_lens_of_all_its_layers(config, capsys):
    two = config.store.parent / "two"
    manifests = harvest(replace(config, layer=(0, 2), store=two))
    for layer, manifest in zip((0, 2), manifests, strict=True):
        assert manifest.format_version == 3
        assert manifest.lens.sequences == 12
        store = open_store(two / f"layer{layer}")
        for site in ("resid_mid", "mlp_out"):
            lens = read_lens(store, site)
            assert int(lens.samples.sum()) == 4 * manifest.lens.rows == 4 * manifest.metric.rows
            assert -1 <= manifest.lens.agreement[site] <= 1
            assert manifest.lens.passes == 4
        assert read_lens(store, "attn_out") is None
        assert "  lens             from 12 sequences; cosine of its two halves: resid_mid " in describe(store, "no text")
        assert "as they were written" in verify(VerifyConfig(store=store.directory))
    alone = harvest(replace(config, layer=0))
    both, one = (read_lens(open_store(folder), "mlp_out") for folder in (two / "layer0", config.directory))
    torch.testing.assert_close(one.products, both.products)
    assert alone[0].lens.agreement == pytest.approx(manifests[0].lens.agreement)


def test_a_lens_is_added_beside_a_metric_that_stays_as_it_is(config):
    harvest(config)
    path = config.store / "manifest.json"
    manifest = json.loads(path.read_text())
    lens = (config.store / "lens.safetensors").read_bytes()
    metric = (config.store / "metric.safetensors").read_bytes()
    del manifest["lens"]
    path.write_text(json.dumps(manifest | {"format_version": 2}))
    (config.store / "lens.safetensors").unlink()
    assert read_lens(open_store(config.directory), "mlp_out") is None
    assert visit(config).finished is not None
    said = add_metric(MetricConfig(layer=1, store=config.store, sequences=12, device="cpu"))
    assert f"{config.store}: lens from 12 sequences" in said
    assert (config.store / "lens.safetensors").read_bytes() == lens
    assert (config.store / "metric.safetensors").read_bytes() == metric
    assert load_manifest(config.store).format_version == 3
    add_metric(MetricConfig(layer=1, store=config.store, sequences=6, device="cpu"))
    assert (config.store / "lens.safetensors").read_bytes() == lens


def test_an_interrupted_estimate_of_the_lens_continues_to_the_same_sums(config, monkeypatch):
    harvest(config)
    whole = (config.store / "lens.safetensors").read_bytes()
    wanted = MetricConfig(layer=1, store=config.store, sequences=12, device="cpu", force=True)
    calls = []

    def interrupted(*args, real=estimating.lens_sums):
        calls.append(args)
        if len(calls) == 8 * 6:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(estimating, "lens_sums", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add_metric(wanted)
    assert (config.store / "metric.unfinished.safetensors").exists()
    done = []
    monkeypatch.setattr(
        estimating, "lens_sums", lambda *args, real=estimating.lens_sums: (done.append(args), real(*args))[1]
    )
    add_metric(wanted)
    assert 0 < len(done) < 8 * 12
    assert (config.store / "lens.safetensors").read_bytes() == whole
    assert not (config.store / "metric.unfinished.safetensors").exists()


def test_faults_of_a_lens_are_named(config, tmp_path):
    harvest(config)
    store = open_store(config.directory)
    path = config.store / "lens.safetensors"
    good = path.read_bytes()

    path.write_bytes(good[:-1] + b"\1")
    with pytest.raises(Damaged, match="another checksum.*make metric"):
        read_lens(store, "mlp_out")
    with pytest.raises(Damaged, match="lens.safetensors has another checksum"):
        verify(VerifyConfig(store=store.directory))
    path.unlink()
    with pytest.raises(Damaged, match="missing"):
        read_lens(store, "mlp_out")
    add_metric(MetricConfig(layer=1, store=config.store, sequences=12, device="cpu"))
    assert path.read_bytes() == good

    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(good)

    def read_as(change: dict) -> None:
        arrays = load_file(kept)
        save_file(arrays | {name: value(arrays[name]) for name, value in change.items()}, path)
        recorded = {"xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes()), "bytes": path.stat().st_size}
        info = store.manifest.lens.model_copy(update=recorded)
        read_lens(replace(store, manifest=store.manifest.model_copy(update={"lens": info})), "mlp_out")

    with pytest.raises(Refused, match="width 8, the site of width 16"):
        read_as({"products.mlp_out": lambda array: array[:, :8, :8].contiguous()})
    with pytest.raises(Refused, match="not finite"):
        read_as({"products.mlp_out": lambda array: array * torch.nan})
    with pytest.raises(Refused, match="no rows of even or of odd"):
        read_as({"samples.mlp_out": torch.zeros_like})
