"""Transcoders of other sites in the model, against plain transformers with a hook that replaces the MLP's output."""

import json
import operator
from dataclasses import dataclass, replace

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from evaluate.metrics.tasks import examples
from evaluate.model.config import ImportanceConfig, InterveneConfig
from evaluate.model.importance import importance
from evaluate.model.intervene import intervene
from evaluate.model.sequences import sample
from evaluate.model.spelling import letter_gradients, read
from evaluate.model.splice import hidden_states, splice
from evaluate.model.texts import read_text
from evaluate.rows import places
from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.families import FAMILIES, PARALLEL
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model
from harvest.model.unembedding import Unembedding
from store.errors import Refused
from store.shards.pair import open_pair
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder
from tests.harvest.model.making import TINY, TINY_PARALLEL, save_tiny
from tests.making import BOS
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")
LAYER = 1
TEXT = "The quick brown fox jumps over it."
SIDE_BY_SIDE = tuple(("resid_pre", architecture) for architecture in TINY_PARALLEL)
AUTOENCODERS = tuple(("mlp_out", name) for name in ("Gemma2ForCausalLM", "BloomForCausalLM", "GPTNeoForCausalLM"))


@dataclass(frozen=True)
class Case:
    """A store, a transcoder of some of its sites, and the model as transformers has it."""

    store: Store
    model: LanguageModel
    transcoder: Transcoder
    plain: torch.nn.Module
    blocks: str
    mlp_out: str

    @torch.no_grad()
    def log_p(self, tokens: Tensor, latent: int | None = None) -> Tensor:
        """Log probabilities of the plain model with the transcoder's output in the MLP's place, one latent ablated."""
        block = operator.attrgetter(self.blocks)(self.plain)[LAYER]
        writer = operator.attrgetter(self.mlp_out)(block)
        seen: dict[str, Tensor] = {}
        excluded = torch.isin(tokens, torch.tensor(self.store.manifest.recipe.excluded_tokens))[..., None]

        def put_in(module: object, args: object, output: Tensor) -> Tensor:
            source = output if self.transcoder.config.source_site == "mlp_out" else seen["resid_pre"]
            t = self.transcoder
            x = t.view(source.flatten(0, -2), self.store.norm)
            latents = t.encode(x)
            if latent is not None:
                latents[:, latent] = 0
            return torch.where(
                excluded, output.view(*tokens.shape, -1), t.decode(latents, x).view(*tokens.shape, -1)
            ).view_as(output)

        hooks = [
            block.register_forward_pre_hook(
                lambda m, a, k: seen.update(resid_pre=a[0] if a else k["hidden_states"]), with_kwargs=True
            ),
            writer.register_forward_hook(put_in),
        ]
        logits = self.plain(tokens).logits
        for hook in hooks:
            hook.remove()
        return logits.double().log_softmax(-1)

    @torch.no_grad()
    def clean(self, tokens: Tensor) -> Tensor:
        return self.plain(tokens).logits.double().log_softmax(-1)


CASES = [
    pytest.param(each, id="-".join(each), marks=() if each in (SIDE_BY_SIDE[0], AUTOENCODERS[0]) else pytest.mark.slow)
    for each in (*SIDE_BY_SIDE, *AUTOENCODERS)
]


@pytest.fixture(scope="module", params=CASES)
def case(request, tiny_models, text_file, tmp_path_factory) -> Case:
    source_site, architecture = request.param
    folder = tmp_path_factory.mktemp("sites")
    parallel = source_site == "resid_pre"
    tiny = TINY_PARALLEL if parallel else TINY
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])
    name = save_tiny(folder / "model", architecture, tiny[architecture], tokenizer)
    sites = tuple({source_site: None, "mlp_out": None})
    store = harvested(name, text_file, folder / "store", layer=LAYER, sites=sites)
    family = (PARALLEL if parallel else FAMILIES)[architecture]
    view = "rms" if parallel else "raw"
    transcoder = make_transcoder(
        d_in=16, d_out=16, d_sae=20, prefix_sizes=(4, 9, 20), view=view, source_site=source_site, model=name, layer=LAYER
    )
    transcoder.save(folder / "run")
    kind = getattr(transformers, architecture)
    plain = kind.from_pretrained(name, dtype=torch.float32, attn_implementation="eager").eval()
    return Case(store, load_model(name, LAYER, CPU, torch.float32), transcoder, plain, family.blocks, family.mlp_out)


def harvested(model: str, text_file, folder, **changes) -> Store:
    options = dict(
        model=model,
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
    harvest(HarvestConfig(**(options | changes)))
    return open_store(folder if (folder / "manifest.json").exists() else folder / "layer0")


def nats(log_p: Tensor, tokens: Tensor) -> Tensor:
    return -log_p[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(2)


@torch.no_grad()
def test_a_restart_equals_the_whole_model(case):
    tokens = next(sample(case.store, 1, source_site="mlp_out")).tokens
    whole = hidden_states(case.model, tokens)
    again = hidden_states(case.model, tokens, case.model.run(tokens)["resid_post"])
    torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-4)


def test_splicing_puts_the_output_in_the_place_of_the_mlp_s(case):
    found = splice([case.transcoder], case.store, case.model, 4, all_prefixes=True).figures(0)
    clean, spliced, divergence = [], [], []
    for part in sample(case.store, 4, source_site="mlp_out"):
        counted = ~(part.excluded[:, :-1] | part.excluded[:, 1:])
        before, after = case.clean(part.tokens), case.log_p(part.tokens)
        clean.append(nats(before, part.tokens)[counted])
        spliced.append(nats(after, part.tokens)[counted])
        divergence.append((before.exp() * (before - after)).sum(-1)[:, :-1][counted])
    cost = torch.cat(spliced).mean() - torch.cat(clean).mean()
    assert found.ce_clean.value == pytest.approx(torch.cat(clean).mean().item(), rel=1e-4)
    assert found.delta_ce.value == pytest.approx(cost.item(), rel=1e-3, abs=1e-5)
    assert found.kl.value == pytest.approx(torch.cat(divergence).mean().item(), rel=1e-3)


def test_an_intervention_feeds_the_source_site_and_replaces_mlp_out(case):
    run = case.store.directory.parent / "run"
    intervene(InterveneConfig(store=case.store.directory, run=run, device="cpu", text=TEXT, ablate=(0,)))
    found = json.loads((run / "intervention.json").read_text())["tokens"]
    place = 0
    for tokens in read_text(TEXT, case.model.tokenizer, case.store).rows:
        clean, before, after = case.clean(tokens), case.log_p(tokens), case.log_p(tokens, latent=0)
        for position in range(1, tokens.shape[1] - 1):
            expected = {
                name: -log_p[0, position, tokens[0, position + 1]].item()
                for name, log_p in (("ce_clean", clean), ("ce_before", before), ("ce_after", after))
            }
            assert {name: found[place][name] for name in expected} == pytest.approx(expected, rel=1e-4)
            place += 1
        place += 1


def test_importance_ablates_in_the_model_that_reads_the_source_site(case):
    run = case.store.directory.parent / "run"
    options = ImportanceConfig(store=case.store.directory, run=run, device="cpu", latents=(0, 5), sequences=4)
    importance(options)
    found = {each["latent"]: each for each in json.loads((run / "importance.json").read_text())["latents"]}
    for latent in (0, 5):
        costs, fired = [], 0
        for part in sample(case.store, 4, source_site=case.transcoder.config.source_site):
            x = case.transcoder.view(part.source[~part.excluded], case.store.norm)
            fired += int((case.transcoder.encode(x)[:, latent] > 0).sum())
            cost = nats(case.log_p(part.tokens, latent), part.tokens) - nats(case.log_p(part.tokens), part.tokens)
            costs.append(cost[~(part.excluded[:, :-1] | part.excluded[:, 1:])])
        assert found[latent]["fired"] == fired
        assert found[latent]["delta_ce"]["value"] == pytest.approx(torch.cat(costs).mean().item(), rel=1e-2, abs=1e-6)


def test_probes_get_the_rows_that_the_transcoder_reads(case):
    sites = (case.transcoder.config.source_site, "mlp_out")
    kinds = torch.ones(100, dtype=torch.bool)
    found = examples(case.store, lambda ids: list(map(str, ids)), "heldout", kinds, sites)
    token = places(case.store, "heldout").token
    shards = case.store.manifest.of_split("heldout")
    for rows, site in zip((found.source, found.target), sites, strict=True):
        stored = torch.cat([case.store.array(shard, site)[: shard.kept].float() for shard in shards])
        for row, number in zip(rows, found.token.tolist(), strict=True):
            assert (stored[token == number] == row).all(1).any()


def test_words_in_prompts_are_read_at_the_source_site(case):
    tokens = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = BOS
    tokens[:, :4] = tokens[0, :4]
    sites = (case.transcoder.config.source_site, "mlp_out")
    before = read(case.model, tokens[0, :4])
    letters, right = torch.tensor([40, 41, 42]), torch.tensor([2, 0])
    asked = (case.model, Unembedding.of(case.model), before, tokens[:, 4:], letters, right, sites)
    source, target, _, _ = letter_gradients(*asked)
    expected = case.model.run(tokens)
    torch.testing.assert_close(source, expected[sites[0]][:, 4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target, expected["mlp_out"][:, 4], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def two_layers(tiny_models, text_file, tmp_path_factory) -> InterveneConfig:
    """A run from layer 0 to layer 1 on the stores of both."""
    folder = tmp_path_factory.mktemp("across")
    harvested(str(tiny_models["gemma2"]), text_file, folder / "two", layer=(0, 1))
    t = make_transcoder(
        d_in=16, d_out=16, d_sae=20, prefix_sizes=(20,), view="normed", layer=0, target_layer=1, name="ours"
    )
    t.save(folder / "run")
    layers = {"store": folder / "two" / "layer0", "target_store": folder / "two" / "layer1"}
    return InterveneConfig(**layers, run=folder / "run", device="cpu", text=TEXT, ablate=(0,))


def test_probes_of_a_run_across_layers_get_the_target_of_the_other_layer(two_layers):
    pair = open_pair(two_layers.store, two_layers.target_store)
    kinds = torch.ones(100, dtype=torch.bool)
    found = examples(pair, lambda ids: list(map(str, ids)), "heldout", kinds)
    token = places(pair, "heldout").token
    other = pair.target
    stored = torch.cat([other.array(shard, "mlp_out")[: shard.kept] for shard in other.manifest.of_split("heldout")])
    for row, number in zip(found.target, found.token.tolist(), strict=True):
        assert (stored[token == number].float() == row).all(1).any()


def commands(options: InterveneConfig):
    common = dict(store=options.store, target_store=options.target_store, run=options.run, device="cpu")
    return {
        "intervene": lambda: intervene(options),
        "importance": lambda: importance(ImportanceConfig(**common, latents=(0,), sequences=4)),
    }


@pytest.mark.parametrize("command", ["intervene", "importance"])
def test_a_run_across_layers_is_refused_before_the_model_is_loaded(two_layers, command, monkeypatch):
    monkeypatch.setattr(f"evaluate.model.{command}.open_model", None)
    with pytest.raises(Refused, match="ours predicts layer 1 from layer 0, and only a transcoder of one layer"):
        commands(two_layers)[command]()


@pytest.mark.parametrize("command", ["intervene", "importance"])
def test_a_run_of_another_target_is_refused_before_the_model_is_loaded(
    two_layers, command, monkeypatch, tmp_path, text_file, tiny_models
):
    monkeypatch.setattr(f"evaluate.model.{command}.open_model", None)
    store = harvested(str(tiny_models["gemma2"]), text_file, tmp_path / "store", layer=0, sites=("resid_mid", "attn_out"))
    t = make_transcoder(d_in=16, d_out=16, d_sae=20, prefix_sizes=(20,), view="raw", layer=0, target_site="attn_out")
    t.save(tmp_path / "run")
    options = replace(two_layers, store=store.directory, target_store=None, run=tmp_path / "run")
    with pytest.raises(Refused, match=r"predicts attn_out, and only mlp_out can be replaced"):
        commands(options)[command]()
