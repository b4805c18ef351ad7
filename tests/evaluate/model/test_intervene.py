"""Interventions against the whole model with a hook written by hand, on tiny random models."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from evaluate.model.config import ImportanceConfig, InterveneConfig
from evaluate.model.importance import importance
from evaluate.model.intervene import intervene
from evaluate.model.sequences import sample
from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model
from store.shards.origin import write_origin
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.store.transcoders.making import make_transcoder

TEXT = "The quick brown fox jumps over it."

SILENT = 3


@pytest.fixture(scope="module", params=["gemma2", "gpt2"])
def config(request, tiny_models, text_file, tmp_path_factory) -> InterveneConfig:
    folder = tmp_path_factory.mktemp("intervene")
    harvest(
        HarvestConfig(
            model=str(tiny_models[request.param]),
            layer=1,
            dataset=str(text_file),
            tokens=2048,
            shard_tokens=512,
            context=32,
            heldout_every=2,
            store=folder / "store",
            device="cpu",
            dtype="float32",
            compute_dtype="float32",
        )
    )
    transcoder = make_transcoder(d_in=16, d_out=16, d_sae=20, prefix_sizes=(4, 9, 20), view="normed")
    transcoder.b_enc[SILENT] = -1000.0
    transcoder.save(folder / "run")
    return InterveneConfig(store=folder / "store", run=folder / "run", device="cpu", text=TEXT, ablate=(0,))


@pytest.fixture(scope="module")
def model(config) -> LanguageModel:
    return load_model(open_store(config.store).manifest.recipe.model, 1, torch.device("cpu"), torch.float32)


def result(config: InterveneConfig, **changes) -> dict:
    intervene(dataclasses.replace(config, **({"ablate": ()} | changes)))
    return json.loads((config.run_directory / "intervention.json").read_text())


@torch.no_grad()
def by_hand(config: InterveneConfig, model: LanguageModel, tokens: torch.Tensor, change, keep_error=False) -> torch.Tensor:
    """Log probabilities of the whole model where a hook puts in a dense reconstruction from changed latents."""
    t, store = Transcoder.load(config.run_directory), open_store(config.store)
    seen = {}

    def keep(value: torch.Tensor, hook: object) -> None:
        seen["resid"] = value

    def put_in(value: torch.Tensor, hook: object) -> torch.Tensor:
        x = t.view(seen["resid"].flatten(0, 1), store.norm)
        pre = x @ t.W_enc + t.b_enc
        latents = pre * (pre > t.threshold)
        plain = latents @ t.W_dec + t.b_dec
        new = (change(latents.clone()) @ t.W_dec + t.b_dec).view_as(value)
        if keep_error:
            new = new + value - plain.view_as(value)
        excluded = torch.isin(tokens, torch.tensor(store.manifest.recipe.excluded_tokens))
        return torch.where(excluded[..., None], value, new)

    hooks = [("blocks.1.hook_resid_mid", keep), ("blocks.1.hook_mlp_out", put_in)]
    return model.bridge.run_with_hooks(tokens, fwd_hooks=hooks).double().log_softmax(-1)


def rows(model: LanguageModel, text: str) -> list[torch.Tensor]:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [torch.tensor([[model.tokenizer.bos_token_id, *ids[i : i + 31]]]) for i in range(0, len(ids), 31)]


@pytest.mark.parametrize("changes", [{"ablate": (SILENT,)}, {"scale": ("0:1", "5:1.0")}], ids=["silent", "times one"])
@pytest.mark.parametrize("keep_error", [False, True])
def test_a_change_of_nothing_changes_nothing_exactly(config, changes, keep_error):
    found = result(config, **changes, keep_error=keep_error)
    assert [part["kl"] for part in found["tokens"]] == [0.0] * len(TEXT)
    assert all(part["ce_before"] == part["ce_after"] for part in found["tokens"])
    assert found["delta_ce"] == 0
    assert found["most_affected"] == []


def pinned(latents: torch.Tensor) -> torch.Tensor:
    latents[:, 7] = 4.5
    return latents


def scaled_and_ablated(latents: torch.Tensor) -> torch.Tensor:
    latents[:, 0] *= -2
    latents[:, [1, 12]] = 0
    return latents


@pytest.mark.parametrize(
    ("changes", "change"),
    [({"pin": ("7:4.5",)}, pinned), ({"scale": ("0:-2",), "ablate": (1, 12)}, scaled_and_ablated)],
)
@pytest.mark.parametrize("keep_error", [False, True])
def test_predictions_equal_a_hand_written_forward(config, model, changes, change, keep_error):
    found = result(config, **changes, keep_error=keep_error, top=3)
    place = 0
    for tokens in rows(model, TEXT):
        before = by_hand(config, model, tokens, lambda latents: latents, keep_error)[0]
        after = by_hand(config, model, tokens, change, keep_error)[0]
        for position in range(1, tokens.shape[1]):
            part = found["tokens"][place]
            kl = (before[position].exp() * (before[position] - after[position])).sum().item()
            assert part["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-7)
            moved = after[position].exp() - before[position].exp()
            rise = part["rises"][0]["change"] if part["rises"] else 0
            assert rise == pytest.approx(max(moved.max().item(), 0), rel=1e-3, abs=1e-6)
            if position + 1 < tokens.shape[1]:
                following = tokens[0, position + 1]
                assert part["ce_before"] == pytest.approx(-before[position, following].item(), rel=1e-4)
                assert part["ce_after"] == pytest.approx(-after[position, following].item(), rel=1e-4)
            place += 1
    assert place == len(found["tokens"]) == len(TEXT)
    assert found["kl_mean"] > 1e-8


def test_the_text_goes_on_as_a_hand_written_forward_says(config, model):
    text, n = "words and", 6
    found = result(config, text=text, pin=("7:4.5",), generate=n)["continued"]
    ways = {"before": lambda latents: latents, "after": pinned}
    [first] = rows(model, text)
    assert found["clean"] == going_on(model, first, n, lambda tokens: model.bridge(tokens))
    for name, change in ways.items():
        assert found[name] == going_on(model, first, n, lambda tokens, c=change: by_hand(config, model, tokens, c)), name
    assert len({*found.values()}) > 1
    same = result(config, text=text, scale=("0:1",), keep_error=True, generate=n)["continued"]
    assert same["clean"] == same["before"] == same["after"]
    full = result(config, text="w" * 100, pin=("7:4.5",), generate=100)["continued"]
    assert {len(each) for each in full.values()} == {31 - 100 % 31}
    assert result(config, text=text, pin=("7:4.5",))["continued"] == {}


def going_on(model: LanguageModel, tokens: torch.Tensor, n: int, forward) -> str:
    """The n likeliest tokens that follow, one after the other."""
    for _ in range(n):
        tokens = torch.cat([tokens, forward(tokens)[:, -1].argmax(1, keepdim=True)], dim=1)
    return model.tokenizer.decode(tokens[0, -n:])


def test_with_the_error_kept_the_unchanged_model_is_the_clean_one(config):
    kept, spliced = (result(config, ablate=(0,), keep_error=keep) for keep in (True, False))
    assert all(part["ce_before"] == part["ce_clean"] for part in kept["tokens"])
    assert spliced["ce_before"] != spliced["ce_clean"] == kept["ce_clean"]


def test_a_run_intervenes_from_its_folder_alone(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = result(config, ablate=(0,))
    alone = tmp_path / "sent"
    shutil.copytree(config.run, alone)
    write_origin(alone, open_store(config.store))
    Path(config.store).rename(tmp_path / "moved")
    try:
        found = result(dataclasses.replace(config, store=None, run=alone), ablate=(0,))
    finally:
        (tmp_path / "moved").rename(config.store)
    assert found == expected | {"run": str(alone)}


@pytest.mark.parametrize("keep_error", [False, True])
def test_importance_equals_ablations_by_hand_and_is_ranked(config, model, keep_error):
    options = ImportanceConfig(
        store=config.store, run=config.run, device="cpu", latents=(0, SILENT, 5, 11), sequences=4, keep_error=keep_error
    )
    importance(options)
    found = json.loads((options.run_directory / "importance.json").read_text())["latents"]
    assert [each["delta_ce"]["value"] for each in found] == sorted((e["delta_ce"]["value"] for e in found), reverse=True)
    store = open_store(options.store)
    for each in found:
        costs = []
        for part in sample(store, 4):

            def ablated(latents: torch.Tensor, latent: int = each["latent"]) -> torch.Tensor:
                latents[:, latent] = 0
                return latents

            before = by_hand(config, model, part.tokens, lambda latents: latents, keep_error)
            after = by_hand(config, model, part.tokens, ablated, keep_error)
            cost = (before - after)[:, :-1].gather(2, part.tokens[:, 1:, None]).squeeze(2)
            costs.append(cost[~(part.excluded[:, :-1] | part.excluded[:, 1:])])
        assert each["delta_ce"]["value"] == pytest.approx(torch.cat(costs).mean().item(), rel=1e-2, abs=1e-6)
    silent = next(each for each in found if each["latent"] == SILENT)
    assert silent["fired"] == 0
    assert silent["delta_ce"]["value"] == 0


def test_by_default_the_latents_that_fire_most_are_ranked(config):
    options = ImportanceConfig(store=config.store, run=config.run, device="cpu", count=3, sequences=4)
    importance(options)
    found = {e["latent"] for e in json.loads((options.run_directory / "importance.json").read_text())["latents"]}
    t, store = Transcoder.load(options.run_directory), open_store(options.store)
    fired = sum((t.encode(t.view(part.source[~part.excluded], store.norm)) > 0).sum(0) for part in sample(store, 4))
    assert fired[list(found)].min() >= fired.topk(4).values[3]
    assert len(found) == 3


def test_importance_counts_the_sequences_that_there_are(config, capsys):
    options = ImportanceConfig(store=config.store, run=config.run, device="cpu", latents=(SILENT,), sequences=10_000)
    importance(options)
    there = sum(shard.n_sequences for shard in open_store(options.store).manifest.of_split("heldout"))
    assert json.loads((options.run_directory / "importance.json").read_text())["sequences"] == there
    assert f"over {there} held-out sequences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ablate": (20,)}, "latent 20 does not exist; the run has latents 0 to 19"),
        ({"scale": ("4",)}, "--scale '4' cannot be read; write LATENT:NUMBER"),
        ({"ablate": (4,), "pin": ("4:1",)}, "latent 4 is changed twice"),
        ({"ablate": (4,), "text": None}, "give the text to run on"),
        ({"ablate": (4,), "text": "a"}, "the text has 1 tokens; at least 2"),
        ({"pin": ("4:1e400",)}, "the model's predictions are no numbers; give smaller ones"),
        ({"ablate": (4,), "out": Path("/")}, "out is /, a folder; name a file"),
        ({}, "nothing is changed"),
    ],
)
def test_bad_input_is_one_line(config, changes, message):
    with pytest.raises(ValueError, match=message):
        result(config, **changes)
