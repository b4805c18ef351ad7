"""Splicing against the whole model with a hook, on a tiny model of each family."""

from dataclasses import replace

import pytest
import torch

from evaluate.compare.config import CompareConfig
from evaluate.compare.measure import measure
from evaluate.compare.trivial import fit, least_squares, low_rank, predict_mean
from evaluate.model import splice as splicing
from evaluate.model.sequences import sample
from evaluate.model.splice import hidden_states, splice
from evaluate.model.unembed import ce_and_kl
from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model
from harvest.model.unembedding import Unembedding
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["gemma2", "gpt2", pytest.param("gemma3", marks=pytest.mark.slow)])
def cached(request, tiny_models, text_file, tmp_path_factory) -> tuple[LanguageModel, Store]:
    folder = tmp_path_factory.mktemp("splice") / "store"
    config = HarvestConfig(
        model=str(tiny_models[request.param]),
        layer=1,
        dataset=str(text_file),
        tokens=2048,
        shard_tokens=512,
        context=32,
        heldout_every=2,
        store=folder,
        device="cpu",
        dtype="float32",
        compute_dtype="float32",
    )
    harvest(config)
    return load_model(config.model, 1, CPU, torch.float32), open_store(folder)


@pytest.fixture(scope="module")
def transcoder() -> Transcoder:
    return make_transcoder(d_in=16, d_out=16, d_sae=20, prefix_sizes=(4, 9, 20), view="normed")


def hooked(model: LanguageModel, tokens: torch.Tensor, replace) -> torch.Tensor:
    """The whole model, with mlp_out of layer 1 replaced: the oracle."""
    with torch.no_grad():
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_out", replace)])
    return logits.log_softmax(-1)


def cross_entropy(log_p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Nats by which each next token surprises."""
    return -log_p[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(2).double()


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p[:, :-1].exp() * (log_p[:, :-1] - log_q[:, :-1])).sum(-1).double()


@torch.no_grad()
def test_a_restart_equals_the_whole_model(cached):
    model, store = cached
    for part in sample(store, 6):
        whole = hidden_states(model, part.tokens)
        again = hidden_states(model, part.tokens, part.source + part.target)
        torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(hidden_states(model, part.tokens), whole)  # the model is whole again afterwards


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("slice_of", [1, 7, 4096])
def test_slices_of_the_vocabulary_give_what_the_whole_gives(monkeypatch, softcap, slice_of):
    from harvest.model import unembedding

    monkeypatch.setitem(unembedding.SLICE, "cpu", slice_of)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 5, 8, generator=generator) * 3, torch.randn(23, 8, generator=generator)
    following = torch.tensor([0, 22, 7, 6, 5])
    logits = hidden.double() @ weight.double().T
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    log_p = logits.log_softmax(-1)
    surprise, divergence = ce_and_kl(Unembedding(weight, softcap), hidden, following)
    expected = -log_p.gather(2, following.expand(3, 5)[..., None]).squeeze(2)
    torch.testing.assert_close(surprise, expected, rtol=1e-5, atol=1e-5)
    apart = (log_p[0].exp() * (log_p[0] - log_p)).sum(-1)
    torch.testing.assert_close(divergence, apart, rtol=1e-5, atol=1e-5)


def test_spliced_figures_equal_the_whole_model_with_a_hook(cached, transcoder):
    model, store = cached
    spliced_too = splice([transcoder], store, model, 6, all_prefixes=True)
    found, by_prefix = spliced_too.figures(0), spliced_too.by_prefix(0)
    mean = torch.tensor(store.manifest.statistics["mlp_out"].mean).float()
    clean, zero, ablated, spliced, divergence, first = [], [], [], [], [], []
    for part in sample(store, 6):
        tokens, out = part.tokens, part.excluded[..., None]
        counted = ~(part.excluded[:, :-1] | part.excluded[:, 1:])
        x = transcoder.view(part.source.flatten(0, 1), store.norm)

        def run(value, tokens=tokens, out=out):
            return hooked(model, tokens, lambda act, hook: torch.where(out, act, value.expand_as(act)))

        whole = hooked(model, tokens, lambda act, hook: act)
        full, small = (run(t(x).view_as(part.target)) for t in (transcoder, transcoder.prefix(4)))
        measured = (whole, run(torch.zeros(16)), run(mean), full, small)
        for into, log_p in zip((clean, zero, ablated, spliced, first), measured, strict=True):
            into.append(cross_entropy(log_p, tokens)[counted])
        divergence.append(kl(whole, full)[counted])
    clean, zero, ablated, spliced, divergence, first = (
        torch.cat(part).mean().item() for part in (clean, zero, ablated, spliced, divergence, first)
    )
    expected = {
        "delta_ce": spliced - clean,
        "kl": divergence,
        "ce_recovered": (zero - spliced) / (zero - clean),
        "ce_clean": clean,
        "ce_zero_ablated": zero,
        "ce_mean_ablated": ablated,
    }
    assert {name: found.value(name) for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert (by_prefix["20"].delta_ce, by_prefix["20"].kl) == (found.delta_ce, found.kl)
    assert by_prefix["4"].delta_ce.value == pytest.approx(first - clean, rel=1e-3, abs=1e-5)


def test_a_spliced_prefix_of_topk_is_the_cut_transcoder(cached, transcoder):
    model, store = cached
    topk = replace(transcoder, config=transcoder.config.model_copy(update={"activation": "topk", "k": 6}))
    nested = splice([topk], store, model, 6, all_prefixes=True).by_prefix(0)
    for size in (4, 9):
        alone = splice([topk.prefix(size)], store, model, 6, all_prefixes=False).figures(0)
        assert nested[str(size)].kl.value == pytest.approx(alone.kl.value, rel=1e-4, abs=1e-9)


def test_special_tokens_are_neither_replaced_nor_counted(cached, transcoder):
    model, store = cached
    excluded = set(store.manifest.recipe.excluded_tokens)
    counted = 0
    for part in sample(store, 6):
        pairs = zip(part.tokens[:, :-1].flatten().tolist(), part.tokens[:, 1:].flatten().tolist(), strict=True)
        counted += sum(here not in excluded and after not in excluded for here, after in pairs)
    found = splice([transcoder], store, model, 6, all_prefixes=False)
    assert found.figures(0).n_predictions == counted
    assert list(found.by_prefix(0)) == ["20"]


def test_two_that_are_one_do_not_differ(cached, transcoder):
    model, store = cached
    found = splice([transcoder, transcoder], store, model, 12, all_prefixes=False)
    assert found.minus(1, 0)["delta_ce"].value == 0
    assert found.figures(0).delta_ce == found.figures(1).delta_ce


def test_a_comparison_gives_everyone_the_figures_that_it_has_alone(cached, transcoder):
    model, store = cached
    other = make_transcoder(d_in=16, d_out=16, d_sae=24, prefix_sizes=(24,), view="rms")
    config = CompareConfig(
        model=store.manifest.recipe.model,
        layer=1,
        store=store.directory,
        device="cpu",
        sequences=12,
        every_prefix=True,
        probes=False,
    )
    results = measure(config, store, [transcoder, other])
    linear = fit(store, transcoder.config, CPU, quiet=True)
    ranked = low_rank(linear, transcoder.config, [round(results[3].l0_mean)])
    trivial = [predict_mean(store, transcoder.config, CPU), ranked, least_squares(linear, transcoder.config)]
    for each, result in zip([transcoder, other, *trivial], results, strict=True):
        alone = splice([each], store, model, 12, all_prefixes=True)
        for name in ("delta_ce", "kl", "ce_mean_ablated"):
            assert result.value(name) == pytest.approx(alone.figures(0).value(name), rel=1e-4, abs=1e-9)
        for size in result.per_prefix:
            found, expected = result.per_prefix[size].kl.value, alone.by_prefix(0)[size].kl.value
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)
    for result in results[:2]:
        assert result.delta_ce.value in [point.value for point in result.frontier_delta_ce]


def test_rows_of_another_place_do_not_restart_the_model(cached, transcoder, monkeypatch):
    model, store = cached
    real = splicing.sequences_of

    def shifted(*args):
        part = real(*args)
        return replace(part, resid_mid=part.resid_mid.roll(1, 1), target=part.target.roll(1, 1))

    monkeypatch.setattr(splicing, "sequences_of", shifted)
    monkeypatch.setattr(splicing, "RESTART_TOLERANCE", 1e-5)  # a random model's predictions hardly differ
    with pytest.raises(ValueError, match="was not made by this model"):
        splice([transcoder], store, model, 6, all_prefixes=False)


def test_the_sample_is_spread_over_the_heldout_shards(cached):
    _, store = cached
    parts = list(sample(store, 6))
    assert sum(len(part.tokens) for part in parts) == 6
    shards = store.manifest.of_split("heldout")
    assert parts[0].document.min() >= shards[0].first_document
    assert parts[-1].document.min() >= shards[-1].first_document
    assert [len(part.tokens) for part in sample(store, 1)] == [1]


def test_kl_and_cross_entropy_by_hand():
    """Two tokens at even odds against 1 : 3."""
    odds = torch.tensor([[1.0], [3.0]]).log()
    surprise, divergence = ce_and_kl(Unembedding(odds, None), torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([1]))
    assert surprise[:, 0].tolist() == pytest.approx([torch.tensor(2.0).log().item(), torch.tensor(4 / 3).log().item()])
    assert divergence[:, 0].tolist() == pytest.approx([0, 0.5 * torch.tensor(4 / 3).log().item()], abs=1e-6)


def test_shards_are_read_in_token_order(cached):
    _, store = cached
    shard = store.manifest.of_split("heldout")[0]
    index = store.array(shard, "token_index").long()
    resid = store.array(shard, "resid_mid")
    part = next(iter(sample(store, 100, at_once=100)))
    for place in (0, 5, 40):
        row = (index == place).nonzero().item()
        assert torch.equal(part.source.flatten(0, 1)[place], resid[row].float())
