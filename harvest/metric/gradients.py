"""Gradients by the sites of some layers: of sampled labels' log-likelihood, and of the hidden states along directions.

One run forth serves both. Only the blocks from the lowest layer on are differentiated.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harvest.metric.draw import draw_labelled
from harvest.metric.lens import PASSES
from harvest.model.language_model import LanguageModel
from harvest.model.unembedding import Unembedding
from harvest.pool import Lanes
from store.devices import of_kind
from store.errors import Refused

LOGITS = {"cpu": 1 << 24, "cuda": 1 << 26}
"""Logits that are held at a time, by kind of device."""
TOKENS_AT_ONCE = {"cpu": 1, "cuda": 4096}
"""Tokens of one backward pass, by kind of device; at least one sequence."""

log = logging.getLogger(__name__)

Place = tuple[int, str]
"""Layer and site."""


def places_in(layers: Sequence[int], sites: Sequence[str]) -> list[Place]:
    """The sites of some layers, the lowest layer first."""
    return [(layer, site) for layer in sorted(layers) for site in sites]


def sampled_scores(
    unembedding: Unembedding, hidden: Float[Tensor, "rows d"], generator: torch.Generator
) -> Float[Tensor, "rows d"]:
    """The gradient, by each hidden state, of the log-likelihood of a token drawn from what the model predicts there."""
    size = max(1, of_kind(LOGITS, hidden.device) // len(unembedding.weight))
    scores = []
    for part in hidden.split(size):
        logits = unembedding.capped(torch.nn.functional.linear(part, unembedding.weight, unembedding.bias).float())
        by_logit = torch.softmax(logits, dim=1)
        drawn = torch.multinomial(by_logit, 1, generator=generator)
        by_logit.neg_().scatter_add_(1, drawn, torch.ones_like(by_logit[:, :1]))
        if unembedding.softcap is not None:
            by_logit *= 1 - (logits / unembedding.softcap) ** 2
        scores.append(by_logit.to(unembedding.weight.dtype) @ unembedding.weight)
    return torch.cat(scores)


@contextmanager
def differentiable(model: LanguageModel, places: Sequence[Place], lowest: int) -> Iterator[dict[Place, Tensor]]:
    """Within the context, a run of the model is differentiable from the block `lowest` on, and leaves its sites here."""
    sites: dict[Place, Tensor] = {}
    begins = model.point_of(lowest, "resid_pre")
    points = {place: model.point_of(*place) for place in places}
    handles = [begins.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())]
    for place, point in points.items():
        take = lambda module, args, output, place=place: sites.__setitem__(place, output)  # noqa: E731
        handles.append(point.register_forward_hook(take))
    try:
        with torch.enable_grad():
            yield sites
    finally:
        for handle in handles:
            handle.remove()


def forget_gradients(model: LanguageModel) -> None:
    """Runs one token. TransformerLens keeps the last activations of some modules, which would keep a graph in memory."""
    with torch.no_grad():
        model.whole.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)


@dataclass(frozen=True)
class Gradients:
    """Some sequences run forth and back, by layer and site."""

    sites: dict[Place, Tensor]
    of_labels: dict[Place, Tensor]
    """Of the log-likelihood of the labels; empty where there are none."""
    of_directions: list[dict[Place, Tensor]]
    """Of the hidden states that the model unembeds, along each of the directions."""


def gradients(
    model: LanguageModel,
    unembedding: Unembedding,
    tokens: Int[Tensor, "sequences context"],
    places: Sequence[Place],
    labelled: Bool[Tensor, "sequences context"] | None = None,
    seed: int = 0,
    directions: Sequence[Float[Tensor, "sequences context d"]] = (),
) -> Gradients:
    """The gradients by the sites of some sequences.

    Args:
        model: runs them.
        unembedding: the model's.
        tokens: the sequences.
        places: the sites.
        labelled: rows at which a label is drawn; None for no labels.
        seed: that draws the labels.
        directions: at each hidden state that the model unembeds; a backward pass for each.
    """
    there = unembedding.weight.device  # another than the last block's where a model is spread over devices
    generator = torch.Generator(there).manual_seed(seed)
    of_labels: Sequence[Tensor] = ()
    with differentiable(model, places, min(layer for layer, _ in places)) as sites:
        hidden = model.whole.base_model(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state
        wanted = [sites[place] for place in places]
        if labelled is not None:
            with torch.no_grad():
                by_hidden = torch.zeros_like(hidden)
                rows = labelled.to(hidden.device)
                by_hidden[rows] = sampled_scores(unembedding, hidden[rows].to(there), generator).to(hidden)
            of_labels = torch.autograd.grad(hidden, wanted, by_hidden, retain_graph=bool(directions))
        along = [torch.autograd.grad(hidden, wanted, each.to(hidden), retain_graph=True) for each in directions]
    return Gradients(
        sites={place: sites[place].detach() for place in places},
        of_labels=dict(zip(places, of_labels, strict=False)),
        of_directions=[dict(zip(places, found, strict=True)) for found in along],
    )


def seconds_a_sequence(
    model: LanguageModel, tokens: Int[Tensor, "sequences context"], layers: Sequence[int], sites: Sequence[str]
) -> float:
    """How long a sequence takes, from a batch on every lane, after one to warm up; 0 where a site has no gradient, which a
    line of the log says."""
    lanes = Lanes(model)
    at_once = sequences_at_once(model, tokens.shape[1])
    places = places_in(layers, sites)
    unembedding = Unembedding.of(model)

    def work(lane: LanguageModel, start: int) -> None:
        part = tokens[start : start + at_once].long()
        labelled = draw_labelled(torch.ones_like(part, dtype=torch.bool), 0, 0)
        directions = [torch.ones(*part.shape, model.d_model)] * PASSES
        gradients(lane, unembedding, part, places, labelled, 0, directions)

    try:
        for place in places:
            model.point_of(*place)
    except Refused as error:
        log.warning("metric and lens will not be estimated: %s", error)
        return 0.0
    starts = range(0, min(len(tokens), 2 * lanes.n * at_once), at_once)
    begun = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        lanes.run(work, starts, lambda done: None)
    seconds = time.perf_counter() - begun
    for lane in lanes.models:
        forget_gradients(lane)
    return seconds / min(len(tokens), starts.stop)


def sequences_at_once(model: LanguageModel, context: int) -> int:
    return max(1, of_kind(TOKENS_AT_ONCE, model.device) // context)
