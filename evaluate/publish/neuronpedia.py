"""Batches of features as Neuronpedia's API takes them: POST /api/feature/upload-batch, at most 128 latents each.

A latent needs an activation there, so that those that never fire are left out.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from evaluate.publish.collected import Collected, activations_of, groups_of
from evaluate.publish.config import ExportFeaturesConfig
from store.errors import Refused
from store.layout import EXPLANATIONS, JUDGE, model_slug

MOST_FEATURES = 128
"""In a batch."""

MOST_TOKENS = 1024
"""In an activation."""

MOST_LOGITS = 20

MOST_CHARACTERS = 512
"""In an explanation."""


def write_batches(config: ExportFeaturesConfig, folder: Path, by_layer: dict[int, Collected]) -> list[str]:
    """Writes the batches of all layers, and returns lines for people. Refused for a name that Neuronpedia does not take."""
    lines = []
    for layer, collected in by_layer.items():
        source = f"{layer}-{config.source_set}"
        model = config.model_id or model_slug(collected.summary.model).lower()
        if not 2 <= len(model) <= 32 or "_" in model:
            raise Refused(f"{model!r} is no name of a model on Neuronpedia (2 to 32 of a-z, 0-9, - and .); give --model-id")
        explanations = explanations_of(collected.run, config)
        living = (record for record in collected.records() if record["contexts"])
        features = (upload(record, explanations.get(record["feature"])) for record in living)
        n_features = 0
        place = folder / source
        place.mkdir()
        for number, batch in enumerate(batched(features, MOST_FEATURES)):
            content = {"modelId": model, "source": source, "features": batch}
            (place / f"batch-{number}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            n_features += len(batch)
        dead = len(collected.features) - n_features
        lines.append(
            f"  {config.out / source}: {n_features:,} latents of {model} in batches of {MOST_FEATURES}; {dead:,} never fire"
        )
        lines += _about_explanations(explanations, config)
    return lines


def upload(record: dict[str, Any], explanation: dict[str, Any] | None) -> dict[str, Any]:
    """One latent in a batch."""
    activations = []
    for quantile, contexts in groups_of(record):
        values = [context["activation"] for context in contexts]
        share = 0.2 if quantile else 0.0
        activations += [activation(context, min(values), max(values), share) for context in contexts]
    return {
        "index": record["feature"],
        "density": record["density"],
        "activations": activations,
        "explanations": [] if explanation is None else [explanation],
        "topLogits": logits(record["promoted"]),
        "bottomLogits": logits(record["suppressed"]),
    }


def activation(context: dict[str, Any], least: float, most: float, share: float) -> dict[str, Any]:
    """One context.

    least, most: activations between which its group lies.
    share: of all firings that its group stands for; 0 for the strongest contexts.
    """
    return {
        "tokens": context["tokens"][:MOST_TOKENS],
        "values": activations_of(context)[:MOST_TOKENS],
        "quantileMin": least,
        "quantileMax": most,
        "quantileFraction": share,
    }


def logits(changed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"token": each["token"], "value": each["logit"]} for each in changed[:MOST_LOGITS]]


def explanations_of(run: Path, config: ExportFeaturesConfig) -> dict[int, dict[str, Any]]:
    """The judge's explanations by latent, cut to the length that Neuronpedia takes; nothing where there are none."""
    path = run / JUDGE / EXPLANATIONS
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        record = json.loads(line)
        text = record["explanation"][:MOST_CHARACTERS]
        found[record["latent"]] = {"text": text, "methodName": config.method, "modelName": config.explainer}
    return found


def batched(features: Iterator[dict[str, Any]], n: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of n features; the last may be shorter."""
    while batch := list(islice(features, n)):
        yield batch


def _about_explanations(explanations: dict[int, Any], config: ExportFeaturesConfig) -> list[str]:
    if not explanations:
        return ["  no explanations: make judge-export and make judge make them"]
    if config.method is None or config.explainer is None:
        cure = "give --method and --explainer"
        return [f"  {len(explanations)} explanations name no method or model, which the server refuses: {cure}"]
    return [f"  {len(explanations)} explanations of {config.explainer}"]
