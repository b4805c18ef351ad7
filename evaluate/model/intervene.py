"""Latents changed while the model runs: a text, or held-out sequences -> what becomes of the model's predictions.

A change adds (after - before) @ W_dec to what stands in the MLP's place, so a change of nothing changes nothing, exactly.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from evaluate.model.config import InterveneConfig
from evaluate.model.splice import hidden_states, open_model
from evaluate.model.unembed import Unembedding
from evaluate.runs import open_run
from harvest.model import LanguageModel
from harvest.text import token_texts
from harvest.tokens import tokenize
from store.devices import resolve_device
from store.disk.files import write_text
from store.layout import INTERVENTION
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from store.views import Norm

ROWS_AT_ONCE = 32
"""Whole distributions over the vocabulary that are held at once."""

Kind = Literal["ablate", "scale", "pin"]


@dataclass(frozen=True)
class Edit:
    """What is done to one latent."""

    latent: int
    kind: Kind
    amount: float = 0.0

    def __call__(self, value: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        if self.kind == "scale":
            return value * self.amount
        return torch.full_like(value, self.amount)


def edits_of(config: InterveneConfig, d_sae: int) -> list[Edit]:
    """Every change that is asked for. ValueError for one that cannot be read, or a latent that is not there or twice."""
    edits = [Edit(latent, "ablate") for latent in config.ablate]
    given_numbers: dict[Kind, tuple[str, ...]] = {"scale": config.scale, "pin": config.pin}
    for kind, given in given_numbers.items():
        for text in given:
            match = re.fullmatch(r"(\d+):(-?\d+(?:\.\d*)?(?:e-?\d+)?)", text)
            if match is None:
                raise ValueError(f"--{kind} {text!r} cannot be read; write LATENT:NUMBER, like 42:2.5")
            edits.append(Edit(int(match[1]), kind, float(match[2])))
    latents = [edit.latent for edit in edits]
    check_latents(latents, d_sae)
    if len(set(latents)) < len(latents):
        twice = next(latent for latent in latents if latents.count(latent) > 1)
        raise ValueError(f"latent {twice} is changed twice; name it once")
    return edits


def check_latents(latents: Sequence[int], d_sae: int) -> None:
    for latent in latents:
        if not 0 <= latent < d_sae:
            raise ValueError(f"latent {latent} does not exist; the run has latents 0 to {d_sae - 1}")


@dataclass(frozen=True)
class SplicedRows:
    """The rows of some sequences as the transcoder sees them, and what stands in the MLP's place."""

    x: Float[Tensor, "rows d_in"]
    latents: Float[Tensor, "rows d_sae"]
    output: Float[Tensor, "rows d_out"]
    """Nothing changed: the reconstruction (with keep_error the MLP's own output), and the MLP's own at excluded tokens."""
    excluded: Bool[Tensor, " rows"]

    @classmethod
    def of(
        cls, transcoder: Transcoder, norm: Norm, source: Tensor, target: Tensor, excluded: Tensor, keep_error: bool
    ) -> "SplicedRows":
        device = transcoder.W_dec.device
        source, target, excluded = source.flatten(0, 1).to(device), target.flatten(0, 1).to(device), excluded.flatten()
        x = transcoder.view(source, norm.to(device))
        latents = transcoder.encode(x)
        output = target.float() if keep_error else transcoder.decode(latents, x)
        excluded = excluded.to(device)
        return cls(x, latents, torch.where(excluded[:, None], target.float(), output), excluded)

    def changed(self, transcoder: Transcoder, edits: Sequence[Edit]) -> Float[Tensor, "rows d_out"]:
        """The output with some latents changed; nothing else moves, also where only the k largest are kept."""
        chosen = torch.tensor([edit.latent for edit in edits], device=self.latents.device)
        before = self.latents[:, chosen]
        after = torch.stack([edit(value) for edit, value in zip(edits, before.T, strict=True)], dim=1)
        change = transcoder.to_output_change((after - before) @ transcoder.W_dec[chosen], self.x)
        return self.output + change.masked_fill(self.excluded[:, None], 0)


@torch.no_grad()
def intervene(config: InterveneConfig) -> None:
    """Prints what the changes do to each prediction of the text, and writes it as JSON."""
    run = open_run(config)
    transcoder, store = run.transcoder, run.store
    edits = edits_of(config, transcoder.config.d_sae)
    text = config.file.read_text(encoding="utf-8") if config.file else str(config.text)
    device = resolve_device(config.device)
    model = open_model(store, device)
    parts = []
    for tokens in tqdm(rows_of(text, model, store), desc="intervene", unit="row", leave=False):
        parts += effects(tokens, transcoder.to(device), store, model, edits, config)
    if not all(math.isfinite(part["kl"]) for part in parts):
        raise ValueError("the changed latents are too large: the model's predictions are no numbers; give smaller ones")
    result = {
        "run": str(config.run_directory), "keep_error": config.keep_error,
        "edits": [vars(edit) for edit in edits], **totals(parts), "tokens": parts,
    }  # fmt: skip
    path = config.out or config.run_directory / INTERVENTION
    write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(table(result), path, sep="\n")


def rows_of(text: str, model: LanguageModel, store: Store) -> list[Int[Tensor, "1 tokens"]]:
    """The text as rows that each begin with BOS, no longer than those of the store. ValueError when there is nothing."""
    ids = next(tokenize([text], model.tokenizer))
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens; at least 2 are needed, so that one is predicted")
    room = store.manifest.recipe.context - 1
    bos = model.tokenizer.bos_token_id
    return [torch.tensor([[bos, *ids[start : start + room]]]) for start in range(0, len(ids), room)]


def effects(
    tokens: Int[Tensor, "1 tokens"], transcoder: Transcoder, store: Store, model: LanguageModel, edits: Sequence[Edit],
    config: InterveneConfig,
) -> list[dict]:  # fmt: skip
    """For each token that is not excluded: the latents before and after, KL, and the change of what is predicted there."""
    recipe = store.manifest.recipe
    sites = model.run_layers(tokens, (recipe.layer,), (transcoder.config.source_site, transcoder.config.target_site))
    source, target = sites[recipe.layer].values()
    excluded = torch.isin(tokens, torch.tensor(recipe.excluded_tokens))
    spliced = SplicedRows.of(transcoder, store.norm, source.float(), target.float(), excluded, config.keep_error)
    resid, d_out = source.float(), target.shape[-1]
    put_in = (target.float(), spliced.output.view(1, -1, d_out), spliced.changed(transcoder, edits).view(1, -1, d_out))
    hidden = torch.stack([hidden_states(model, tokens, resid + output.to(resid.device))[0] for output in put_in])
    words = token_texts(model.tokenizer, tokens[0].tolist())
    following = [*tokens[0, 1:].tolist(), None]
    found = []
    for some in (~excluded[0]).nonzero().flatten().split(ROWS_AT_ONCE):
        compared = differences(Unembedding.of(model), hidden[:, some.to(hidden.device)], config.top)
        for place, (log_p, each) in zip(some.tolist(), compared, strict=True):
            surprise = [None] * 3 if following[place] is None else (-log_p[:, following[place]]).tolist()
            before = spliced.latents[place, [edit.latent for edit in edits]].cpu()
            after = [float(edit(value[None])) for edit, value in zip(edits, before, strict=True)]
            found.append({
                "token": words[place], "before": before.tolist(), "after": after,
                **dict(zip(("ce_clean", "ce_before", "ce_after"), surprise, strict=True)), **in_words(each, model),
            })  # fmt: skip
    return found


def in_words(each: dict, model: LanguageModel) -> dict:
    """The same with tokens as text."""
    worded = {}
    for name in ("rises", "falls"):
        worded[name] = [{"token": token_texts(model.tokenizer, [i])[0], "change": change} for i, change in each[name]]
    return each | worded


def differences(unembedding: Unembedding, hidden: Float[Tensor, "three rows d"], top: int) -> Iterator[tuple[Tensor, dict]]:
    """By row: log probabilities (clean, before, after); KL(before || after), the tokens that gain and lose most."""
    # one after the other: on some CPUs a product's last bit depends on the rows beside it
    logits = torch.stack([torch.nn.functional.linear(one, unembedding.weight, unembedding.bias) for one in hidden])
    log_p = unembedding.capped(logits.float()).double().log_softmax(-1).cpu()
    for clean, before, after in log_p.unbind(1):
        change = after.exp() - before.exp()
        ends = {}
        for name, largest in (("rises", True), ("falls", False)):
            best = change.topk(min(top, len(change)), largest=largest)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ends[name] = [(index, value) for index, value in pairs if (value > 0) == largest and value != 0]
        kl = float((before.exp() * (before - after)).sum())
        yield torch.stack([clean, before, after]), {"kl": kl, **ends}


def totals(parts: Sequence[dict]) -> dict:
    """Means over the predictions of the text, and the tokens whose probability it changes most in sum."""
    predicted = [part for part in parts if part["ce_after"] is not None]
    ce = {name: sum(part[name] for part in predicted) / len(predicted) for name in ("ce_clean", "ce_before", "ce_after")}
    sums: dict[str, float] = {}
    for part in parts:
        for item in (*part["rises"], *part["falls"]):
            sums[item["token"]] = sums.get(item["token"], 0.0) + item["change"]
    ranked = sorted(sums.items(), key=lambda pair: -abs(pair[1]))[:10]
    return {
        "kl_mean": sum(part["kl"] for part in parts) / len(parts), **ce, "delta_ce": ce["ce_after"] - ce["ce_before"],
        "most_affected": [{"token": token, "change": change} for token, change in ranked],
    }  # fmt: skip


def table(result: dict) -> str:
    """The result for people: a line a token."""

    def words(items: Sequence[dict]) -> str:
        return "  ".join(f"{item['token']!r} {item['change']:+.3f}" for item in items[:3])

    against = "the model itself (error kept)" if result["keep_error"] else "the spliced model"
    edits = ", ".join(
        f"{edit['kind']} {edit['latent']}" + ("" if edit["kind"] == "ablate" else f" {edit['amount']:g}")
        for edit in result["edits"]
    )
    lines = [
        f"{edits}; changes are against {against}",
        "active: the largest activation of these latents at the token, before. KL, delta CE (nats), and the probabilities",
        "that rise and fall most are those of the prediction that follows the token.",
        f"{'token':>16} {'active':>10} {'KL':>9} {'delta CE':>9}  probabilities",
    ]
    for part in result["tokens"]:
        delta = "" if part["ce_after"] is None else f"{part['ce_after'] - part['ce_before']:+.4f}"
        figures = f"{part['token'][-14:]!r:>16} {max(part['before']):10.3g} {part['kl']:9.2g} {delta:>9}"
        lines.append(f"{figures}  {words(part['rises'])}  {words(part['falls'])}")
    lines.append(
        f"mean KL {result['kl_mean']:.4g} nats; CE {result['ce_clean']:.4f} clean, {result['ce_before']:.4f} before, "
        f"{result['ce_after']:.4f} after ({result['delta_ce']:+.4f}); most affected: "
        + (words(result["most_affected"]) or "none: the predictions stay as they are")
    )
    return "\n".join(lines)
