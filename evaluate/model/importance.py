"""`python -m evaluate importance`: ranks latents by the cross-entropy that ablating each costs the model."""

import json
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from evaluate.intervals import MIN_DOCUMENTS, by_document, estimate, ratio, resample
from evaluate.model.config import ImportanceConfig
from evaluate.model.edits import Edit, SplicedRows, check_latents
from evaluate.model.sequences import SequencePlace, Sequences, chosen_places, sample, sequences_of
from evaluate.model.splice import beside_mlp, check_restart, hidden_states, open_model
from evaluate.model.unembed import ce_and_kl
from evaluate.runs import check_in_model, open_run
from harvest.model.language_model import LanguageModel
from harvest.model.unembedding import Unembedding
from store.devices import resolve_device
from store.disk.files import write_text
from store.layout import IMPORTANCE
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder


@torch.no_grad()
def importance(config: ImportanceConfig) -> None:
    """Prints latents ranked by their delta CE on held-out sequences, and writes RUN/importance.json."""
    run = open_run(config)
    store = run.store
    check_in_model(run.transcoder.config, "choose another --run")
    check_latents(config.latents, run.transcoder.config.d_sae)
    device = resolve_device(config.device)
    transcoder = run.transcoder.to(device)
    model = open_model(store, device)
    latents = list(config.latents) or most_active(transcoder, store, config)
    places = chosen_places(store, config.sequences, at_once=1)
    ranked = rank(transcoder, store, model, latents, places, config.keep_error)
    result = {
        "run": str(config.run_directory),
        "keep_error": config.keep_error,
        "sequences": len(places),
        "latents": ranked,
    }
    path = config.run_directory / IMPORTANCE
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"delta CE in nats over {len(places)} held-out sequences; above 0: worse without the latent")
    print(f"{'latent':>8} {'fires':>8} {'delta CE':>10}  95% interval")
    for latent in ranked:
        ci95 = latent["delta_ce"]["ci95"]
        interval = f"[{ci95[0]:+.5f}, {ci95[1]:+.5f}]" if ci95 else f"fewer than {MIN_DOCUMENTS} documents"
        print(f"{latent['latent']:>8} {latent['fired']:>8} {latent['delta_ce']['value']:>+10.5f}  {interval}")
    print(path)


def most_active(transcoder: Transcoder, store: Store, config: ImportanceConfig) -> list[int]:
    """The latents that fire on most rows of the held-out sequences, or have the largest sum of activations there."""
    score = torch.zeros(transcoder.config.d_sae, dtype=torch.float64)
    for part in sample(store, config.sequences, source_site=transcoder.config.source_site):
        spliced = SplicedRows.of(transcoder, store.norm, part.source, part.target, part.excluded, keep_error=True)
        latents = spliced.latents[~spliced.excluded].double()
        if config.by == "density":
            latents = (latents > 0).double()
        score += latents.sum(0).cpu()
    return score.topk(min(config.count, len(score))).indices.tolist()


def rank(
    transcoder: Transcoder,
    store: Store,
    model: LanguageModel,
    latents: Sequence[int],
    places: Sequence[SequencePlace],
    keep_error: bool,
) -> list[dict]:
    """Each latent's delta CE when it alone is ablated, with its interval over documents; the costliest first.

    transcoder: on the model's device.
    store: holds the sequences.
    model: the language model that the store was made with.
    latents: to rank.
    places: of the sequences.
    keep_error: whether to ablate from the model itself instead of the spliced model.
    """
    unembedding = Unembedding.of(model)
    source_site = transcoder.config.source_site
    check_restart(model, unembedding, sequences_of(store, *places[0], source_site))
    fired = torch.zeros(len(latents), dtype=torch.long)
    documents = []
    columns = []
    with tqdm(total=len(places), desc="importance", unit="sequence") as bar:
        for place in places:
            part = sequences_of(store, *place, source_site)
            spliced = SplicedRows.of(transcoder, store.norm, part.source, part.target, part.excluded, keep_error)
            fires = (spliced.latents[:, latents] > 0) & ~spliced.excluded[:, None]
            fired += fires.sum(0).cpu()
            firing = fires.any(0).nonzero().flatten().tolist()
            ablated = [spliced.edited(transcoder, [Edit(latents[index], "ablate")]) for index in firing]
            counted = part.counted
            ce = cross_entropy(model, unembedding, part, [spliced.output, *ablated], counted)
            delta = torch.zeros(ce.shape[1], len(latents), dtype=torch.float64)
            delta[:, firing] = (ce[1:] - ce[0]).T
            documents.append(part.document[:, :-1][counted])
            columns.append(delta)
            bar.update(len(part.tokens))
    deltas = torch.cat(columns)
    document = torch.unique(torch.cat(documents), return_inverse=True)[1]
    sums = by_document(document, torch.cat([deltas, torch.ones(len(deltas), 1, dtype=torch.float64)], dim=1))
    drawn = resample(sums)
    ranked = []
    for index, latent in enumerate(latents):
        delta_ce = estimate(ratio(index, -1), sums, drawn).as_json()
        ranked.append({"latent": latent, "fired": int(fired[index]), "delta_ce": delta_ce})
    return sorted(ranked, key=lambda latent: -latent["delta_ce"]["value"])


def cross_entropy(
    model: LanguageModel,
    unembedding: Unembedding,
    part: Sequences,
    outputs: Sequence[Float[Tensor, "rows d_out"]],
    counted: Bool[Tensor, "sequences predictions"],
) -> Float[Tensor, "outputs counted"]:
    """Nats of each counted prediction, by output that stands in the MLP's place.

    model: restarted from the cached layer, once for each output.
    unembedding: the model's.
    part: the sequences.
    outputs: for all their tokens.
    counted: the predictions whose cross-entropy is wanted.
    """
    hidden = []
    beside = beside_mlp(part, model)
    for output in outputs:
        resid_post = beside.to(output.device) + output.view_as(part.target)
        hidden.append(hidden_states(model, part.tokens, resid_post)[:, :-1][counted])
    stacked = torch.stack(hidden)
    ce, _ = ce_and_kl(unembedding, stacked, part.tokens[:, 1:][counted].to(stacked.device))
    return ce.cpu()
