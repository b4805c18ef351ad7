"""The whole model with MLPs replaced: each replacement reads the residual stream that the replaced model itself makes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluate.model.splice import hidden_states, restarted
from harvest.model.language_model import LanguageModel
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder
from store.views import Norm

READABLE = ("resid_pre", "attn_out", "resid_mid", "mlp_out")
"""Sites that are there when a block's MLP output is replaced."""

Predict = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_out"]]
"""mlp_out from the rows of the source site as the model has them."""


@dataclass(frozen=True)
class Replacement:
    """What takes the place of one layer's MLP."""

    source_site: str
    """One of READABLE."""
    predict: Predict

    @classmethod
    def of(cls, transcoder: Transcoder, norm: Norm, at_once: int) -> "Replacement":
        """A transcoder, on the device of its weights.

        norm: the norm before the layer's MLP, on the same device.
        at_once: rows in a step.
        """
        forward = Forward(transcoder.whole())

        def some(rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
            x = transcoder.view(rows.float(), norm)
            return forward.prefixes(forward.entries(x), x).recon[-1]

        def predict(rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
            return torch.cat([some(part) for part in rows.split(at_once)])

        return cls(transcoder.config.source_site, predict)


Place = tuple[int, str]
"""Layer and site."""


@dataclass(frozen=True)
class CleanRun:
    """The model itself on some sequences."""

    tokens: Int[Tensor, "sequences context"]
    excluded: Bool[Tensor, "sequences context"]
    """Tokens whose MLP output is never replaced."""
    hidden: Float[Tensor, "sequences context d"]
    """What the model unembeds."""
    resid_post: dict[int, Tensor]
    """By layer, from the one below the lowest replaced layer on."""
    attn_out: dict[int, Tensor]
    """By layer, from the lowest replaced layer on."""


@torch.no_grad()
def run_clean(
    model: LanguageModel,
    tokens: Int[Tensor, "sequences context"],
    excluded: Bool[Tensor, "sequences context"],
    lowest: int,
) -> CleanRun:
    """The model itself, with what the replaced runs need of it.

    lowest: the lowest layer that any of them replaces.
    """
    blocks = range(lowest, model.n_layers)
    below = [(lowest - 1, "resid_post")] if lowest else []
    places = [*below, *((layer, site) for layer in blocks for site in ("attn_out", "resid_post"))]
    with kept(model, places) as sites:
        hidden = hidden_states(model, tokens)
    return CleanRun(
        tokens=tokens,
        excluded=excluded.to(model.device),
        hidden=hidden,
        resid_post={layer: sites[layer, site] for layer, site in places if site == "resid_post"},
        attn_out={layer: sites[layer, site] for layer, site in places if site == "attn_out"},
    )


@torch.no_grad()
def run_replaced(
    model: LanguageModel,
    clean: CleanRun,
    replacements: Mapping[int, Replacement],
    frozen: bool,
    wanted: Sequence[int] = (),
) -> tuple[Float[Tensor, "sequences context d"], dict[int, Tensor]]:
    """The hidden states that the model unembeds, and resid_post of the wanted layers, with some layers replaced.

    Blocks below the lowest replaced one are skipped: their outputs are those of the clean run.

    model: runs.
    clean: its own run on the same sequences.
    replacements: by layer.
    frozen: whether every block from the lowest replaced one on adds the clean run's attention output.
    wanted: layers from the lowest replaced one on.
    """
    lowest = min(replacements)
    skipped = restarted(model, clean.resid_post[lowest - 1], lowest - 1) if lowest else nullcontext()
    with (
        skipped,  # first: it may run a token to see how the blocks return their output
        attention_frozen(model, clean.attn_out if frozen else {}),
        replaced(model, replacements, clean.excluded),
        kept(model, [(layer, "resid_post") for layer in wanted]) as sites,
    ):
        hidden = hidden_states(model, clean.tokens)
    return hidden, {layer: sites[layer, "resid_post"] for layer in wanted}


Hook = Callable[[torch.nn.Module, tuple, Tensor], Tensor | None]


@contextmanager
def hooked(hooks: Sequence[tuple[torch.nn.Module, Hook]]) -> Iterator[None]:
    """Within the context, each hook sees what passes its module, in their order; what it returns passes on instead."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def kept(model: LanguageModel, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """Within the context, runs of the model leave these sites here."""
    sites: dict[Place, Tensor] = {}

    def keep(place: Place) -> Hook:
        def hook(module: torch.nn.Module, args: tuple, value: Tensor) -> None:
            sites[place] = value.detach()

        return hook

    with hooked([(model.point_of(*place), keep(place)) for place in places]):
        yield sites


@contextmanager
def attention_frozen(model: LanguageModel, attn_out: Mapping[int, Tensor]) -> Iterator[None]:
    """Within the context, each of these layers adds the attention output that is given."""

    def put_in(given: Tensor) -> Hook:
        return lambda module, args, value: given.view_as(value)

    with hooked([(model.point_of(layer, "attn_out"), put_in(given)) for layer, given in attn_out.items()]):
        yield


@contextmanager
def replaced(
    model: LanguageModel, replacements: Mapping[int, Replacement], excluded: Bool[Tensor, "sequences context"]
) -> Iterator[None]:
    """Within the context, mlp_out of these layers is what the replacements make of the current residual stream; excluded
    tokens keep what the layer's own MLP makes of it."""
    sources = {layer: (layer, each.source_site) for layer, each in replacements.items() if each.source_site != "mlp_out"}

    def put_in(layer: int, each: Replacement, sites: Mapping[Place, Tensor]) -> Hook:
        def hook(module: torch.nn.Module, args: tuple, value: Tensor) -> Tensor:
            source = sites[sources[layer]] if layer in sources else value
            made = each.predict(source.flatten(0, -2)).to(value.dtype).view_as(value)
            own = excluded.to(value.device).view(*value.shape[:-1], 1)
            return torch.where(own, value, made)

        return hook

    with kept(model, list(sources.values())) as sites:
        outputs = [(model.point_of(layer, "mlp_out"), put_in(layer, each, sites)) for layer, each in replacements.items()]
        with hooked(outputs):
            yield
