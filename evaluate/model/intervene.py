"""`python -m evaluate intervene`: edits latents while the model runs on a text, and shows the change of its predictions."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from evaluate.model.config import InterveneConfig
from evaluate.model.control import controls_of
from evaluate.model.edits import Edit, SplicedRows, edits_of
from evaluate.model.shown import table
from evaluate.model.splice import hidden_states, open_model, sum_of_sites
from evaluate.model.texts import read_text, room_for, text_of
from evaluate.runs import check_in_model, open_without_rows
from harvest.model.language_model import LanguageModel
from harvest.model.tokenizer import token_texts
from harvest.model.unembedding import Unembedding
from store.devices import resolve_device
from store.disk.files import write_text
from store.errors import Refused
from store.layout import INTERVENTION
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

ROWS_AT_ONCE = 32
"""Tokens whose whole distributions over the vocabulary are held at once."""

MOST_AFFECTED = 10
"""Tokens listed whose probability changes most in sum."""


@torch.no_grad()
def intervene(config: InterveneConfig) -> None:
    """Prints the change of each prediction of the text, and writes it as JSON."""
    run = open_without_rows(config)
    store = run.store
    check_in_model(run.transcoder.config, "choose another --run")
    edits = edits_of(config, run.transcoder.config.d_sae)
    changed = [edit.latent for edit in edits]
    controls = controls_of(config.run_directory, changed, config.seed) if config.control else []
    instead = [replace(edit, latent=each.control) for edit, each in zip(edits, controls, strict=False)]
    text = text_of(config)
    device = resolve_device(config.device)
    model = open_model(store, device)
    transcoder = run.transcoder.to(device)
    predictions = []
    of_controls = []
    read = read_text(text, model.tokenizer, store)
    rows = read.rows
    n_written = room_for(config.generate, rows[-1], store)
    for tokens in tqdm(rows, desc="intervene", unit="row", leave=False):
        predictions += effects(tokens, transcoder, store, model, edits, config)
        of_controls += effects(tokens, transcoder, store, model, instead, config) if instead else []
    if not all(math.isfinite(prediction["kl"]) for prediction in (*predictions, *of_controls)):
        raise Refused("the changed latents are too large: the model's predictions are no numbers; give smaller ones")
    result = {
        "run": str(config.run_directory),
        "keep_error": config.keep_error,
        "notes": list(read.notes),
        "edits": [vars(edit) for edit in edits],
        **totals(predictions),
        "continued": continued(rows[-1], transcoder, store, model, edits, config.keep_error, n_written),
        "tokens": predictions,
    }
    if controls:
        result["control"] = {
            "seed": config.seed,
            "latents": [vars(each) for each in controls],
            "edits": [vars(edit) for edit in instead],
            **totals(of_controls),
            "tokens": of_controls,
        }
    path = config.out or config.run_directory / INTERVENTION
    write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(table(result), path, sep="\n")


@dataclass(frozen=True)
class Runs:
    """A row up to the layer, and what comes in the MLP's place: its own output, the transcoder's, and that of the edits."""

    tokens: Int[Tensor, "1 tokens"]
    beside: Tensor
    """The sites that the MLP's output is added to."""
    put_in: tuple[Tensor, Tensor, Tensor]
    spliced: SplicedRows
    excluded: Tensor
    """bool [1, tokens]."""

    def hidden(self, model: LanguageModel, index: int) -> Float[Tensor, "tokens d"]:
        """The last hidden states with one of `put_in`."""
        output = self.put_in[index]
        return hidden_states(model, self.tokens, self.beside + output.to(self.beside.device))[0]


def runs_of(
    tokens: Int[Tensor, "1 tokens"],
    transcoder: Transcoder,
    store: Store,
    model: LanguageModel,
    edits: Sequence[Edit],
    keep_error: bool,
) -> Runs:
    """Runs the layers up to the transcoder's on a row; arguments as in `effects`."""
    recipe = store.manifest.recipe
    source_site = transcoder.config.source_site
    target_site = transcoder.config.target_site
    wanted = {source_site, target_site, *model.beside_mlp}
    sites = model.run_layers(tokens, (recipe.layer,), sorted(wanted))[recipe.layer]
    source = sites[source_site].float()
    target = sites[target_site].float()
    beside = sum_of_sites(sites, model)
    excluded = torch.isin(tokens, torch.tensor(recipe.excluded_tokens))
    spliced = SplicedRows.of(transcoder, store.norm, source, target, excluded, keep_error)
    put_in = (target, spliced.output.view_as(target), spliced.edited(transcoder, edits).view_as(target))
    return Runs(tokens, beside, put_in, spliced, excluded)


def continued(
    tokens: Int[Tensor, "1 tokens"],
    transcoder: Transcoder,
    store: Store,
    model: LanguageModel,
    edits: Sequence[Edit],
    keep_error: bool,
    n: int,
) -> dict[str, str]:
    """How the model goes on after a row for n tokens, the likeliest each time: clean, before and after; empty for none."""
    unembedding = Unembedding.of(model)
    found = {}
    for index, name in enumerate(("clean", "before", "after") if n > 0 else ()):
        row = tokens
        for _ in range(n):
            last = runs_of(row, transcoder, store, model, edits, keep_error).hidden(model, index)[-1:]
            logits = torch.nn.functional.linear(last, unembedding.weight, unembedding.bias)
            row = torch.cat([row, logits.argmax(1)[None].to(row.device)], dim=1)
        found[name] = "".join(token_texts(model.tokenizer, row[0, tokens.shape[1] :].tolist()))
    return found


def effects(
    tokens: Int[Tensor, "1 tokens"],
    transcoder: Transcoder,
    store: Store,
    model: LanguageModel,
    edits: Sequence[Edit],
    config: InterveneConfig,
) -> list[dict]:
    """For each token that is not excluded: the edited latents, KL, cross-entropy, and the tokens whose probability moves.

    tokens: a row of the text.
    transcoder: on the model's device.
    store: has the norm of the layer and the excluded tokens.
    model: runs on the row.
    edits: of the transcoder's latents.
    config: the options.
    """
    runs = runs_of(tokens, transcoder, store, model, edits, config.keep_error)
    hidden = torch.stack([runs.hidden(model, index) for index in range(len(runs.put_in))])
    words = token_texts(model.tokenizer, tokens[0].tolist())
    following = [*tokens[0, 1:].tolist(), None]
    edited_latents = [edit.latent for edit in edits]
    predictions = []
    for positions in (~runs.excluded[0]).nonzero().flatten().split(ROWS_AT_ONCE):
        compared = differences(Unembedding.of(model), hidden[:, positions.to(hidden.device)], config.top)
        for position, difference in zip(positions.tolist(), compared, strict=True):
            before = runs.spliced.latents[position, edited_latents].cpu()
            after = [float(edit(value[None])) for edit, value in zip(edits, before, strict=True)]
            prediction = {"token": words[position], "before": before.tolist(), "after": after}
            prediction |= cross_entropies(difference.log_p, following[position])
            prediction["kl"] = difference.kl
            prediction["rises"] = with_words(difference.rises, model)
            prediction["falls"] = with_words(difference.falls, model)
            predictions.append(prediction)
    return predictions


def cross_entropies(log_p: Float[Tensor, "three vocabulary"], following: int | None) -> dict[str, float | None]:
    """Cross-entropy in nats of the token that follows: clean, before and after; None after the last token."""
    nats = [None] * 3 if following is None else (-log_p[:, following]).tolist()
    return dict(zip(("ce_clean", "ce_before", "ce_after"), nats, strict=True))


def with_words(changes: Sequence[tuple[int, float]], model: LanguageModel) -> list[dict]:
    """Changes of probability, with the tokens as text."""
    return [{"token": token_texts(model.tokenizer, [token])[0], "change": change} for token, change in changes]


@dataclass(frozen=True)
class Difference:
    """The predictions at one token, with and without the edits."""

    log_p: Float[Tensor, "three vocabulary"]
    """Log probabilities: clean (without the transcoder), before and after the edits."""
    kl: float
    """KL(before || after) in nats."""
    rises: list[tuple[int, float]]
    """The tokens that gain most, with the change of their probability."""
    falls: list[tuple[int, float]]
    """The tokens that lose most."""


def differences(unembedding: Unembedding, hidden: Float[Tensor, "three rows d"], top: int) -> Iterator[Difference]:
    """By row, the difference that the edits make, from hidden states: clean, before and after."""
    # one after the other: on some CPUs a product's last bit depends on the rows beside it
    logits = torch.stack([torch.nn.functional.linear(one, unembedding.weight, unembedding.bias) for one in hidden])
    log_p = unembedding.capped(logits.float()).double().log_softmax(-1).cpu()
    for row in log_p.unbind(1):
        _, before, after = row
        change = after.exp() - before.exp()
        rises = change.topk(min(top, len(change)))
        falls = change.topk(min(top, len(change)), largest=False)
        yield Difference(
            log_p=row,
            kl=float((before.exp() * (before - after)).sum()),
            rises=[(index, value) for index, value in pairs_of(rises) if value > 0],
            falls=[(index, value) for index, value in pairs_of(falls) if value < 0],
        )


def pairs_of(top: torch.return_types.topk) -> list[tuple[int, float]]:
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def totals(predictions: Sequence[dict]) -> dict:
    """Means over the predictions of the text, and the tokens whose probability changes most in sum."""
    predicted = [prediction for prediction in predictions if prediction["ce_after"] is not None]
    ce = {}
    for name in ("ce_clean", "ce_before", "ce_after"):
        ce[name] = sum(prediction[name] for prediction in predicted) / len(predicted)
    changes: dict[str, float] = {}
    for prediction in predictions:
        for item in (*prediction["rises"], *prediction["falls"]):
            changes[item["token"]] = changes.get(item["token"], 0.0) + item["change"]
    ranked = sorted(changes.items(), key=lambda pair: -abs(pair[1]))[:MOST_AFFECTED]
    return {
        "kl_mean": sum(prediction["kl"] for prediction in predictions) / len(predictions),
        **ce,
        "delta_ce": ce["ce_after"] - ce["ce_before"],
        "most_affected": [{"token": token, "change": change} for token, change in ranked],
    }
