"""Ranks latents by what ablating each costs the model's predictions."""

import json
from collections.abc import Sequence

import torch
from tqdm import tqdm

from evaluate.intervals import MIN_DOCUMENTS, by_document, estimate, ratio, resample
from evaluate.model.config import ImportanceConfig
from evaluate.model.intervene import (
    Edit,
    SplicedRows,
    check_latents,
)
from evaluate.model.splice import SequencePlace, check_restart, hidden_states, open_model, places_of, sample, sequences_of
from evaluate.model.unembed import Unembedding, ce_and_kl
from evaluate.runs import open_run
from harvest.model import LanguageModel
from store.devices import resolve_device
from store.disk.files import write_text
from store.layout import IMPORTANCE
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder


@torch.no_grad()
def importance(config: ImportanceConfig) -> None:
    """Prints latents by what ablating each costs on held-out sequences, and writes RUN/importance.json."""
    run = open_run(config)
    transcoder, store = run.transcoder, run.store
    check_latents(config.latents, transcoder.config.d_sae)
    device = resolve_device(config.device)
    transcoder, model = transcoder.to(device), open_model(store, device)
    latents = list(config.latents) or most_active(transcoder, store, config)
    places = list(places_of(store, config.sequences, at_once=1))
    ranked = rank(transcoder, store, model, latents, places, config.keep_error)
    result = {
        "run": str(config.run_directory), "keep_error": config.keep_error, "sequences": len(places), "latents": ranked,
    }  # fmt: skip
    path = config.run_directory / IMPORTANCE
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"delta CE in nats over {len(places)} held-out sequences; above 0: worse without the latent")
    print(f"{'latent':>8} {'fires':>8} {'delta CE':>10}  95% interval")
    for each in ranked:
        interval = each["delta_ce"]["ci95"]
        shown = f"[{interval[0]:+.5f}, {interval[1]:+.5f}]" if interval else f"fewer than {MIN_DOCUMENTS} documents"
        print(f"{each['latent']:>8} {each['fired']:>8} {each['delta_ce']['value']:>+10.5f}  {shown}")
    print(path)


def most_active(transcoder: Transcoder, store: Store, config: ImportanceConfig) -> list[int]:
    """The latents that fire most, or have the largest sum of activations, on these sequences."""
    score = torch.zeros(transcoder.config.d_sae, dtype=torch.float64)
    for part in sample(store, config.sequences):
        spliced = SplicedRows.of(transcoder, store.norm, part.source, part.target, part.excluded, keep_error=True)
        active = spliced.latents[~spliced.excluded].double()
        score += ((active > 0).double() if config.by == "density" else active).sum(0).cpu()
    return score.topk(min(config.count, len(score))).indices.tolist()


def rank(
    transcoder: Transcoder, store: Store, model: LanguageModel, latents: Sequence[int], places: Sequence[SequencePlace],
    keep_error: bool,
) -> list[dict]:  # fmt: skip
    """Each latent's delta CE when it alone is ablated, with its interval over documents; the costliest first."""
    unembedding, documents, columns = Unembedding.of(model), [], []
    fired = torch.zeros(len(latents), dtype=torch.long)
    with tqdm(total=len(places), desc="importance", unit="sequence") as bar:
        for number, place in enumerate(places):
            part = sequences_of(store, *place)
            if number == 0:
                check_restart(model, unembedding, part)
            spliced = SplicedRows.of(transcoder, store.norm, part.source, part.target, part.excluded, keep_error)
            on = (spliced.latents[:, latents] > 0) & ~spliced.excluded[:, None]
            fired += on.sum(0).cpu()
            firing = on.any(0).nonzero().flatten().tolist()
            outputs = [spliced.output, *(spliced.changed(transcoder, [Edit(latents[i], "ablate")]) for i in firing)]
            counted = ~(part.excluded[:, :-1] | part.excluded[:, 1:])
            hidden = torch.stack([
                hidden_states(model, part.tokens, part.source.to(o.device) + o.view_as(part.target))[:, :-1][counted]
                for o in outputs
            ])  # fmt: skip
            surprise = ce_and_kl(unembedding, hidden, part.tokens[:, 1:][counted].to(hidden.device))[0].cpu()
            delta = torch.zeros(surprise.shape[1], len(latents), dtype=torch.float64)
            delta[:, firing] = (surprise[1:] - surprise[0]).T
            documents.append(part.document[:, :-1][counted])
            columns.append(delta)
            bar.update(len(part.tokens))
    deltas = torch.cat(columns)
    document = torch.unique(torch.cat(documents), return_inverse=True)[1]
    sums = by_document(document, torch.cat([deltas, torch.ones(len(deltas), 1, dtype=torch.float64)], dim=1))
    drawn = resample(sums)
    found = [
        {"latent": latent, "fired": int(fired[i]), "delta_ce": estimate(ratio(i, -1), sums, drawn).as_json()}
        for i, latent in enumerate(latents)
    ]
    return sorted(found, key=lambda each: -each["delta_ce"]["value"])
