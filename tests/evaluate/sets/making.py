"""A store of two layers of a tiny model, transcoders of both, and plain transformers with hooks: the oracle of a set."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from evaluate.model.sequences import TokenRows, places_of, tokens_of
from evaluate.sets.config import CompareSetConfig
from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder
from tests.harvest.model.making import TINY, TINY_PARALLEL, save_tiny
from tests.store.transcoders.making import make_transcoder

LAYERS = (0, 2)
"""Of three: one that is not replaced lies between."""
SEQUENCES = 6
STRONGER = 8
D, D_SAE = 16, 24
"""Widths of the model, and of transcoders written by `write_scope`."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Parts:
    """Modules of an architecture in transformers."""

    blocks: str
    source_site: str
    reads: str | None
    """Its input is resid_mid; None where the MLP's source is the block's input."""
    attention: str
    """Its output is added to the residual stream."""
    mlp_out: str
    tiny: Mapping


PARTS = {
    "Gemma2ForCausalLM": Parts(
        "model.layers",
        "resid_mid",
        "pre_feedforward_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        TINY,
    ),
    "GPT2LMHeadModel": Parts("transformer.h", "resid_mid", "ln_2", "attn", "mlp", TINY),
    "GPTNeoXForCausalLM": Parts("gpt_neox.layers", "resid_pre", None, "attention", "mlp", TINY_PARALLEL),
}


@dataclass(frozen=True)
class Case:
    """Stores and transcoders of LAYERS, and the model as it is harvested and as transformers has it."""

    folder: Path
    model: LanguageModel
    plain: torch.nn.Module
    parts: Parts
    stores: Mapping[int, Store]
    transcoders: Mapping[int, Transcoder]

    def config(self, **changes) -> CompareSetConfig:
        options = dict(
            model=self.model.name,
            layer=LAYERS,
            store=self.folder / "stores",
            run=self.folder / "layer{layer}" / "run",
            device="cpu",
            sequences=SEQUENCES,
        )
        return CompareSetConfig(**(options | changes))

    def texts(self) -> list[TokenRows]:
        store = self.stores[LAYERS[0]]
        return [tokens_of(store, *place) for place in places_of(store, SEQUENCES, 1)]

    @functools.cached_property
    def clean(self) -> list[tuple[TokenRows, "PlainRun"]]:
        """The texts, and what plain transformers makes of each with its own MLPs."""
        return [(text, self.run(text, {})) for text in self.texts()]

    def predict(self, layer: int, transcoder: Transcoder | None = None) -> Callable[[Tensor], Tensor]:
        """A layer's output by its transcoder, run densely."""
        each = transcoder or self.transcoders[layer]
        return lambda rows: each(each.view(rows, self.stores[layer].norm))

    def own_mlp(self, layer: int) -> Callable[[Tensor], Tensor]:
        """A layer's output by its own MLP with the norms around it (Gemma 2)."""
        block = operator.attrgetter(self.parts.blocks)(self.plain)[layer]
        return lambda rows: block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(rows)))

    @torch.no_grad()
    def run(
        self,
        text: TokenRows,
        replace: Mapping[int, Callable[[Tensor], Tensor]],
        frozen: Mapping[int, Tensor] | None = None,
    ) -> "PlainRun":
        """Plain transformers with some MLPs replaced, and the given attention outputs put in."""
        blocks = operator.attrgetter(self.parts.blocks)(self.plain)
        seen = PlainRun(torch.empty(0), {}, {})
        excluded = text.excluded[..., None]
        with contextlib.ExitStack() as stack:
            for layer, block in enumerate(blocks):
                stack.enter_context(self.hooked(block, layer, replace.get(layer), frozen, seen, excluded))
            logits = self.plain(text.tokens, use_cache=False).logits
        return PlainRun(logits.double().log_softmax(-1), seen.attention, seen.output)

    @contextlib.contextmanager
    def hooked(self, block, layer: int, predict, frozen, seen: "PlainRun", excluded: Tensor) -> Iterator[None]:
        """One block with its hooks."""
        source: list[Tensor] = []

        def read(module, args, kwargs=None):
            source[:] = [args[0] if args else kwargs["hidden_states"]]

        def attend(module, args, output):
            whole = output if isinstance(output, tuple) else (output,)
            if frozen is not None:
                whole = (frozen[layer], *whole[1:])
            seen.attention[layer] = whole[0]
            return whole if isinstance(output, tuple) else whole[0]

        def write(module, args, output):
            if predict is None:
                return output
            return torch.where(excluded, output, predict(source[0].flatten(0, 1)).view_as(output))

        def leave(module, args, output):
            seen.output[layer] = output[0] if isinstance(output, tuple) else output

        if self.parts.reads is None:
            handles = [block.register_forward_pre_hook(read, with_kwargs=True)]
        else:
            handles = [getattr(block, self.parts.reads).register_forward_pre_hook(read)]
        handles.append(getattr(block, self.parts.attention).register_forward_hook(attend))
        handles.append(getattr(block, self.parts.mlp_out).register_forward_hook(write))
        handles.append(block.register_forward_hook(leave))
        yield
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class PlainRun:
    log_p: Tensor
    attention: dict[int, Tensor]
    output: dict[int, Tensor]


def strengthen_attention(model: torch.nn.Module) -> torch.nn.Module:
    """The model with attention that moves much from token to token: frozen, it is then far from recomputed."""
    for name, parameter in model.named_parameters():
        if "attn." in name or "attention." in name:
            parameter.data.mul_(STRONGER)
    return model


def make_case(folder: Path, architecture: str, tokenizer: PreTrainedTokenizerFast, text_file: Path) -> Case:
    parts = PARTS[architecture]
    name = save_tiny(folder / "model", architecture, parts.tiny[architecture], tokenizer)
    kind = getattr(transformers, architecture)
    strengthen_attention(kind.from_pretrained(name, dtype=torch.float32)).save_pretrained(name)
    harvest(
        HarvestConfig(
            model=name,
            layer=LAYERS,
            dataset=str(text_file),
            tokens=4096,
            shard_tokens=512,
            context=32,
            heldout_every=2,
            sites=(parts.source_site, "mlp_out"),
            store=folder / "stores",
            device="cpu",
            dtype="float32",
            compute_dtype="float32",
            metric_sequences=0,
        )
    )
    transcoders = {}
    for layer in LAYERS:
        made = make_transcoder(
            16, 20, 16, model=name, layer=layer, view="normed", source_site=parts.source_site, prefix_sizes=(8, 20)
        )
        generator = torch.Generator().manual_seed(layer)
        arrays = {key: 0.3 * torch.randn(each.shape, generator=generator) for key, each in made.arrays().items()}
        arrays["threshold"] = arrays["threshold"].abs()
        transcoders[layer] = Transcoder(made.config, **arrays)
        transcoders[layer].save(folder / f"layer{layer}" / "run")
    plain = kind.from_pretrained(name, dtype=torch.float32, attn_implementation="eager").eval()
    stores = {layer: open_store(folder / "stores" / f"layer{layer}") for layer in LAYERS}
    return Case(folder, load_model(name, LAYERS[-1], CPU, torch.float32), plain, parts, stores, transcoders)


def write_scope(folder: Path, layer: int, l0: int, width: int = 16) -> dict[str, Tensor]:
    """A transcoder of a layer in the layout of Gemma Scope 1, below a copy of its repository; returns its arrays."""
    drawn = np.random.default_rng([layer, l0])
    arrays = {
        "W_enc": drawn.normal(size=(D, D_SAE)),
        "b_enc": drawn.normal(size=D_SAE),
        "W_dec": drawn.normal(size=(D_SAE, D)),
        "b_dec": drawn.normal(size=D),
        "threshold": drawn.uniform(0, 1, D_SAE),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    place = folder / f"layer_{layer}/width_{width}k/average_l0_{l0}"
    place.mkdir(parents=True)
    np.savez(place / "params.npz", **arrays)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def figures_by_hand(
    case: Case, layers: tuple[int, ...], frozen: bool, predict: Callable[[int], Callable[[Tensor], Tensor]] | None = None
) -> dict[str, float]:
    """What a choice of layers costs, and the error of each block's output, by plain transformers.

    predict: by layer, what takes the MLP's place; the case's own transcoders for None.
    """
    by_layer = case.predict if predict is None else predict
    ce, kl, top1 = [], [], []
    outputs: dict[int, list] = {layer: [] for layer in range(3)}
    for text, clean in case.clean:
        after = case.run(text, {layer: by_layer(layer) for layer in layers}, clean.attention if frozen else None)
        counted = ~(text.excluded[:, :-1] | text.excluded[:, 1:])
        p, q = (each.log_p[:, :-1][counted] for each in (clean, after))
        following = text.tokens[:, 1:][counted][:, None]
        ce.append(p.gather(1, following) - q.gather(1, following))
        kl.append((p.exp() * (p - q)).sum(1))
        top1.append((p.argmax(1) == q.argmax(1)).double())
        for layer, pairs in outputs.items():
            pairs.append([each.output[layer][:, :-1][counted].double() for each in (clean, after)])
    found = {"delta_ce": float(torch.cat(ce).mean()), "kl": float(torch.cat(kl).mean())}
    found["top1"] = float(torch.cat(top1).mean())
    for layer, pairs in outputs.items():
        own, made = (torch.cat(each) for each in zip(*pairs, strict=True))
        found[f"growth {layer}"] = float((made - own).square().sum() / (own - own.mean(0)).square().sum())
    return found
