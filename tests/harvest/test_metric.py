"""The metric of a store: gradients against plain transformers, the estimate against full Jacobians, and its files."""

import json
import operator
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.metric import estimate as estimating
from harvest.metric import gradients as differentiating
from harvest.metric.add import add_metric
from harvest.metric.draw import draw_labelled
from harvest.metric.estimate import Estimate
from harvest.metric.gradients import gradients, places_in, sampled_scores
from harvest.model.families import FAMILIES
from harvest.model.loading import load_model
from harvest.model.unembedding import Unembedding
from harvest.preflight import visit
from harvest.store_config import MetricConfig
from store.errors import Damaged, Refused
from store.shards.manifest import load_manifest
from store.shards.metric import SiteMetric, read_metric
from store.shards.reader import open_store
from store.shards.ring import Ring, save
from tests.harvest.making import harvest_with_metric
from tests.harvest.model.making import N_LAYERS, TINY, save_tiny
from tests.making import BOS

CPU = torch.device("cpu")
LABEL = 17


def always(label: int):
    """A draw that always gives one token."""
    return lambda probabilities, n, generator=None: torch.full((len(probabilities), n), label)


@pytest.fixture
def config(tiny_models, text_file, tmp_path) -> HarvestConfig:
    return harvest_with_metric(tiny_models["gemma2"], text_file, tmp_path / "store")


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_scores_are_the_gradients_of_the_drawn_tokens_log_likelihood(softcap, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(50, 6, generator=generator), torch.randn(50, generator=generator)
    hidden = torch.randn(9, 6, generator=generator)
    monkeypatch.setitem(differentiating.LOGITS, "cpu", 100)  # two rows at a time
    monkeypatch.setattr(torch, "multinomial", always(LABEL))
    found = sampled_scores(Unembedding(weight, softcap, bias), hidden, generator)
    exact = hidden.double().requires_grad_()
    logits = exact @ weight.double().T + bias.double()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    torch.log_softmax(logits, 1)[:, LABEL].sum().backward()
    torch.testing.assert_close(found.double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_gradients_of_every_family_equal_autograd_on_plain_transformers(architecture, tiny_models, tmp_path, monkeypatch):
    family = FAMILIES[architecture]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])
    folder = save_tiny(tmp_path, architecture, TINY[architecture], tokenizer)
    tokens = torch.randint(3, 95, (2, 10), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = BOS
    labelled = torch.zeros(2, 10, dtype=torch.bool)
    labelled[0, [2, 7]] = True
    labelled[1, 9] = True

    monkeypatch.setattr(torch, "multinomial", always(LABEL))
    model = load_model(folder, N_LAYERS - 1, CPU, torch.float32)
    names = places_in((0, N_LAYERS - 1), ("resid_pre", "resid_mid", "mlp_out", "resid_post"))
    ran = gradients(model, Unembedding.of(model), tokens, names, labelled)
    sites, found = ran.sites, ran.of_labels

    plain = (
        getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    )
    seen = {}
    for layer in (0, N_LAYERS - 1):
        block = operator.attrgetter(family.blocks)(plain)[layer]
        getattr(block, family.resid_mid).register_forward_pre_hook(
            lambda m, a, place=(layer, "resid_mid"): seen.__setitem__(place, a[0])
        )
        operator.attrgetter(family.mlp_out)(block).register_forward_hook(
            lambda m, a, out, place=(layer, "mlp_out"): seen.__setitem__(place, out[0] if isinstance(out, tuple) else out)
        )
    logits = plain(tokens).logits
    likelihood = torch.log_softmax(logits.float(), -1)[..., LABEL][labelled].sum()
    expected = dict(zip(seen, torch.autograd.grad(likelihood, list(seen.values())), strict=True))
    for place, gradient in expected.items():
        torch.testing.assert_close(sites[place], seen[place].detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[place], gradient, rtol=1e-3, atol=1e-6)
    for layer in (0, N_LAYERS - 1):
        torch.testing.assert_close(found[layer, "resid_post"], found[layer, "mlp_out"])


def exact_fisher(folder: str, tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """E[g g^T] at mlp_out of layer 1 of a Gemma 2, by all Jacobians of all predictions, in float64."""
    model = transformers.Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    total = torch.zeros(16, 16, dtype=torch.float64)
    for row, mask in zip(tokens, kept, strict=True):

        def logits(shift: torch.Tensor, row: torch.Tensor = row) -> torch.Tensor:
            norm = model.model.layers[1].post_feedforward_layernorm
            handle = norm.register_forward_hook(lambda m, a, out: out + shift)
            found = model(row[None]).logits[0]
            handle.remove()
            return found

        shift = torch.zeros(len(row), 16, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(logits, shift, vectorize=True)
        p = torch.softmax(logits(shift), -1).detach()
        for s in mask.nonzero().squeeze(1).tolist():
            fisher = torch.diag(p[s]) - torch.outer(p[s], p[s])
            for t in mask.nonzero().squeeze(1).tolist():
                total += jacobian[s, :, t].T @ fisher @ jacobian[s, :, t]
    return total / kept.sum()


def test_the_estimate_comes_to_the_fisher_matrix_of_full_jacobians(config, tiny_models):
    harvest(replace(config, shard_tokens=32, tokens=64, metric_sequences=0))  # two training sequences
    store = open_store(config.directory)
    model = load_model(config.model, 1, CPU, torch.float32)
    found = 0
    for seed in range(24):
        under_way = Estimate(model, {1: store}, 2, seed, lens=False)
        found = found + under_way.run().metric[1, "mlp_out"].fisher / 24
        under_way.forget()
    exact = exact_fisher(str(tiny_models["gemma2"]), under_way.drawn.tokens, under_way.drawn.kept)
    cosine = (found * exact).sum() / found.norm() / exact.norm()
    assert cosine > 0.9
    assert found.trace().item() == pytest.approx(exact.trace().item(), rel=0.2)


def test_a_harvest_ends_with_the_metric_of_all_its_layers(config):
    manifests = harvest(replace(config, layer=(0, 1), store=config.store.parent / "two"))
    for layer, manifest in enumerate(manifests):
        assert manifest.format_version == 3
        assert manifest.metric.sequences == 12
        store = open_store(config.store.parent / f"two/layer{layer}")
        for site in ("resid_mid", "mlp_out"):
            metric = read_metric(store, site)
            assert int(metric.rows.sum()) == manifest.metric.rows
            assert (torch.linalg.eigvalsh(metric.fisher) > -1e-12).all()
            assert -1 <= manifest.metric.agreement[site] <= 1
        assert not (store.directory / "metric.unfinished.safetensors").exists()
    alone = harvest(config)
    of_both = read_metric(open_store(config.store.parent / "two/layer1"), "mlp_out")
    torch.testing.assert_close(read_metric(open_store(config.directory), "mlp_out").fisher, of_both.fisher)
    assert alone[0].fingerprint == manifests[1].fingerprint


def test_only_rows_of_training_sequences_count_once_each(config):
    harvest(replace(config, metric_sequences=0))
    store = open_store(config.directory)
    manifest = load_manifest(config.directory)
    assert manifest.format_version == 1
    assert manifest.metric is None
    model = load_model(config.model, 1, CPU, torch.float32)
    under_way = Estimate(model, {1: store}, 10_000, 0)
    rows = [store.array(shard, "mlp_out")[: shard.kept].double() for shard in store.manifest.of_split("train")]
    every = torch.cat(rows)
    found = under_way.run().metric[1, "mlp_out"]
    assert found.rows.sum() == len(every)
    torch.testing.assert_close(found.total, every.sum(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.products, every.T @ every, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.covariance, every.T.cov(correction=0), rtol=1e-3, atol=1e-4)


def test_labels_lie_on_rows_and_do_not_depend_on_the_batch():
    kept = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) > 0.3
    together = draw_labelled(kept, 4, 7)
    alone = torch.cat([draw_labelled(kept[n : n + 1], 4 + n, 7) for n in range(6)])
    assert torch.equal(together, alone)
    assert not (together & ~kept).any()
    assert together.sum(1).tolist() == [-(-int(n) // 4) for n in kept.sum(1)]


def test_an_interrupted_estimate_continues_to_the_same_sums(config, monkeypatch):
    harvest(replace(config, metric_sequences=0))
    wanted = MetricConfig(model=config.model, layer=1, store=config.store, sequences=12, device="cpu")
    add_metric(wanted)
    whole = (config.store / "metric.safetensors").read_bytes()
    calls = []

    def failing(*args, real=estimating.sums_of, **options):
        calls.append(args)
        if len(calls) == 6:  # the second of two sites, in the third sequence
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(estimating, "sums_of", failing)
        patch.setattr(estimating, "Lanes", one_lane)
        with pytest.raises(KeyboardInterrupt):
            add_metric(replace(wanted, force=True))
    assert (config.store / "metric.unfinished.safetensors").exists()
    assert (config.store / "metric.safetensors").read_bytes() == whole
    done = []
    monkeypatch.setattr(estimating, "sums_of", lambda *args, real=estimating.sums_of: (done.append(args), real(*args))[1])
    add_metric(replace(wanted, force=True))
    assert len(done) == 2 * (12 - 2)
    assert (config.store / "metric.safetensors").read_bytes() == whole
    assert not (config.store / "metric.unfinished.safetensors").exists()


class one_lane:
    """Lanes of one thread: Ctrl-C comes between two sequences."""

    def __init__(self, model) -> None:
        self.model = model
        self.models = [model]

    def run(self, work, starts, progress) -> None:
        for start in starts:
            progress(work(self.model, start))


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt2"])
def test_a_model_keeps_no_graph_of_an_estimate(config, tiny_models, family, monkeypatch):
    """TransformerLens's modules keep activations: a copy of the model could not be made any more."""
    config = replace(config, model=str(tiny_models[family]), metric_sequences=0)
    harvest(config)
    store = open_store(config.directory)
    model = load_model(config.model, 1, CPU, torch.float32)
    for _ in range(2):
        under_way = Estimate(model, {1: store}, 6, 0)
        under_way.run()
        model.twin()


def test_a_harvest_killed_before_its_metric_is_not_finished(config, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("harvest.loop.estimate", killed)
        with pytest.raises(KeyboardInterrupt):
            harvest(config)
    assert visit(config).finished is None
    assert visit(replace(config, metric_sequences=0)).finished is not None
    [manifest] = harvest(config)
    assert manifest.metric is not None
    assert visit(config).finished is not None


def test_a_store_of_before_is_finished_as_it_is(config):
    harvest(replace(config, metric_sequences=0))
    assert visit(config).finished is not None


def test_faults_are_named(config, tmp_path):
    harvest(config)
    store = open_store(config.directory)
    path = config.store / "metric.safetensors"
    good = path.read_bytes()
    assert read_metric(store, "resid_post") is None

    path.write_bytes(good[:-1] + b"\1")
    with pytest.raises(Damaged, match="another checksum.*make metric"):
        read_metric(store, "mlp_out")
    path.unlink()
    with pytest.raises(Damaged, match="missing"):
        read_metric(store, "mlp_out")

    def read_as(change: dict) -> None:
        arrays = load_file(kept)
        save_file(arrays | {name: value(arrays[name]) for name, value in change.items()}, path)
        import xxhash

        recorded = {"xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes()), "bytes": path.stat().st_size}
        info = store.manifest.metric.model_copy(update=recorded)
        read_metric(replace(store, manifest=store.manifest.model_copy(update={"metric": info})), "mlp_out")

    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(good)
    with pytest.raises(Refused, match="width 8, the site of width 16"):
        read_as(
            {
                "gradients.mlp_out": lambda array: array[:, :8, :8].contiguous(),
                "products.mlp_out": lambda array: array[:8, :8].contiguous(),
                "total.mlp_out": lambda array: array[:8].contiguous(),
            }
        )
    with pytest.raises(Refused, match="not finite"):
        read_as({"total.mlp_out": lambda array: array * torch.nan})
    with pytest.raises(Refused, match="no gradients of even or of odd"):
        read_as({"gradients.mlp_out": torch.zeros_like})


def test_the_metric_is_of_the_store_s_layer_whatever_layer_the_command_names(config):
    """`make metric STORE=...` names layer 8 by default."""
    harvest(replace(config, metric_sequences=12))
    store = open_store(config.directory)
    before = read_metric(store, "mlp_out")
    add_metric(MetricConfig(store=config.store, sequences=12, device="cpu", force=True))
    after = read_metric(open_store(config.directory), "mlp_out")
    torch.testing.assert_close(after.total, before.total)
    torch.testing.assert_close(after.gradients, before.gradients)
    model = load_model(config.model, 2, CPU, torch.float32)
    with pytest.raises(Refused, match=r"of layer 2 is not what .* holds of it"):
        Estimate(model, {2: store}, 4, 0).run()


def test_a_ring_s_manifest_keeps_its_deleted_shards(config):
    harvest(replace(config, metric_sequences=0))
    before = load_manifest(config.directory)
    deleted = next(shard for shard in before.shards if shard.split == "train")
    save(config.directory, Ring(keep_shards=4, deleted=1))
    (config.directory / deleted.name).unlink()
    add_metric(MetricConfig(layer=1, store=config.store, sequences=8, device="cpu"))
    after = load_manifest(config.directory)
    assert after.metric is not None
    assert after.shards == before.shards


def test_ctrl_c_between_two_sites_counts_no_batch_twice(config, monkeypatch):
    harvest(replace(config, metric_sequences=0))
    wanted = MetricConfig(layer=1, store=config.store, sequences=12, device="cpu")
    add_metric(wanted)
    whole = (config.store / "metric.safetensors").read_bytes()
    calls = []

    def interrupted(self, other, real=SiteMetric.plus):
        calls.append(other)
        if len(calls) == 8:  # the second site of the fourth sequence
            raise KeyboardInterrupt
        return real(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(SiteMetric, "plus", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add_metric(replace(wanted, force=True))
    add_metric(replace(wanted, force=True))
    assert (config.store / "metric.safetensors").read_bytes() == whole


def test_too_little_text_for_a_metric_is_a_warning_at_the_end_of_a_harvest(config, caplog):
    few = replace(config, shard_tokens=16, tokens=32)
    [manifest] = harvest(few)
    assert manifest.metric is None
    assert "metric or lens could not be estimated: the metric needs at least 2 training sequences" in caplog.text
    assert visit(few).finished is not None
    with pytest.raises(Refused, match="metric_sequences is 1"):
        replace(config, metric_sequences=1)


def test_a_state_of_a_smaller_store_is_not_taken_up(config):
    harvest(replace(config, metric_sequences=0))
    model = load_model(config.model, 1, CPU, torch.float32)
    small = Estimate(model, {1: open_store(config.directory)}, 4, 0)
    small._save()
    harvest(replace(config, tokens=2 * config.tokens, metric_sequences=0))
    large = Estimate(model, {1: open_store(config.directory)}, 4, 0)
    assert small.identity != large.identity


def test_too_few_sequences_and_other_stores_are_refused(config, caplog):
    harvest(replace(config, metric_sequences=0))
    store = open_store(config.directory)
    model = load_model(config.model, 1, CPU, torch.float32)
    with pytest.raises(Refused, match="at least 2 training sequences: 1 are asked for"):
        Estimate(model, {1: store}, 1, 0)
    with pytest.raises(Refused, match="keep_shards"):
        replace(config, keep_shards=2)
    add_metric(MetricConfig(model=config.model, layer=1, store=config.store, sequences=1_000_000, device="cpu"))
    assert "training sequences, and the metric is estimated from these" in caplog.text
    described = json.loads((config.store / "manifest.json").read_text())
    assert described["format_version"] == 3
    assert described["metric"]["sequences"] < 1_000_000


def test_a_metric_that_is_there_already_is_said_to_stay(config, caplog):
    caplog.set_level("INFO")
    harvest(replace(config, metric_sequences=4))
    add_metric(MetricConfig(store=config.store, device="cpu", sequences=2))
    assert "metric and lens are there already; --force estimates them again" in caplog.messages
