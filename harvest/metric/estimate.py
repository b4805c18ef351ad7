"""Estimates the metric of the sites of some layers: how much an error there costs the model's predictions.

A small error e at a site costs about e^T G e / 2 nats of KL, with the Fisher matrix G = E[g g^T] and g the gradient, by one
row of the site, of the log-likelihood of labels that are drawn from the model's own predictions (arXiv 1412.1193). One
backward pass gives the gradients of all sites of all layers. Only the blocks from the lowest layer on are differentiated.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import xxhash
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from harvest.config import SITES
from harvest.metric.draw import LABELS, Drawn, cached_rows, draw_labelled
from harvest.model.language_model import LanguageModel
from harvest.model.unembedding import Unembedding
from harvest.pool import Lanes
from store.devices import of_kind
from store.disk.files import write_tensors
from store.disk.remote import Remote
from store.errors import Refused
from store.layout import METRIC_STATE
from store.shards.metric import SiteMetric, check_metric
from store.shards.reader import Store

SEQUENCES = {"cpu": 48, "cuda": 256}
"""Sequences where the options do not say, by kind of device."""
AGREEMENT = 0.8
"""Cosine of the two halves below which a warning asks for more sequences."""
LOGITS = {"cpu": 1 << 24, "cuda": 1 << 26}
"""Logits that are held at a time, by kind of device."""
TOKENS_AT_ONCE = {"cpu": 1, "cuda": 4096}
"""Tokens of one backward pass, by kind of device; at least one sequence."""
APART = 0.1
"""Relative difference of a sequence's activations from the store's above which they are others. bfloat16 makes 0.01."""
SAVE_EVERY = 30.0
"""Seconds between two saves of an estimate under way."""
log = logging.getLogger(__name__)

Sums = dict[int, dict[str, SiteMetric]]
"""By layer and site."""


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
def differentiable(
    model: LanguageModel, names: Mapping[tuple[int, str], str], lowest: int
) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Within the context, a run of the model is differentiable from the block `lowest` on, and leaves its sites here."""
    sites: dict[tuple[int, str], Tensor] = {}
    hooks = model.bridge.hook_dict
    begins = hooks[SITES["resid_pre"].format(layer=lowest)]
    handles = [begins.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())]
    for place, name in names.items():
        take = lambda module, args, output, place=place: sites.__setitem__(place, output)  # noqa: E731
        handles.append(hooks[name].register_forward_hook(take))
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


def gradients(
    model: LanguageModel,
    unembedding: Unembedding,
    tokens: Int[Tensor, "sequences context"],
    labelled: Bool[Tensor, "sequences context"],
    names: Mapping[tuple[int, str], str],
    seed: int,
) -> tuple[dict[tuple[int, str], Tensor], dict[tuple[int, str], Tensor]]:
    """The sites of some sequences, and the gradients by them of the log-likelihood of labels at the labelled rows."""
    there = unembedding.weight.device  # another than the last block's where a model is spread over devices
    generator = torch.Generator(there).manual_seed(seed)
    with differentiable(model, names, min(layer for layer, _ in names)) as sites:
        hidden = model.whole.base_model(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state
        with torch.no_grad():
            by_hidden = torch.zeros_like(hidden)
            rows = labelled.to(hidden.device)
            by_hidden[rows] = sampled_scores(unembedding, hidden[rows].to(there), generator).to(hidden)
        found = torch.autograd.grad(hidden, list(sites.values()), by_hidden)
    return {place: values.detach() for place, values in sites.items()}, dict(zip(sites, found, strict=True))


def seconds_a_sequence(
    model: LanguageModel, tokens: Int[Tensor, "sequences context"], layers: Sequence[int], sites: Sequence[str]
) -> float:
    """How long a sequence takes, from a batch on every lane, after one to warm up."""
    lanes = Lanes(model)
    at_once = sequences_at_once(model, tokens.shape[1])
    names = {(layer, site): SITES[site].format(layer=layer) for layer in layers for site in sites}
    unembedding = Unembedding.of(model)

    def work(lane: LanguageModel, start: int) -> None:
        part = tokens[start : start + at_once]
        gradients(lane, unembedding, part.long(), draw_labelled(torch.ones_like(part, dtype=torch.bool), 0, 0), names, 0)

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


class Estimate:
    """An estimate under way: which sequences it has run, and the sums over their rows.

    model: that made the stores.
    stores: by layer, of one harvest.
    n: training sequences to run.
    seed: that draws the sequences, the rows with a label, and the labels.
    """

    def __init__(self, model: LanguageModel, stores: Mapping[int, Store], n: int, seed: int) -> None:
        first = stores[min(stores)]
        self.model = model
        self.stores = stores
        self.seed = seed
        self.drawn = Drawn.of(first, n, seed)
        self.path = None if isinstance(first.directory, Remote) else first.directory / METRIC_STATE
        """Where it is saved; nowhere for a store at a URL."""
        sites = first.manifest.recipe.sites
        self.names = {(layer, site): SITES[site].format(layer=layer) for layer in sorted(stores) for site in sites}
        self.sums = {place: SiteMetric.zeros(stores[place[0]].manifest.widths[place[1]]) for place in self.names}
        self.run_already = 0
        self.identity = {
            "stores": [stores[layer].fingerprint for layer in sorted(stores)],
            "sequences": len(self.drawn.tokens),
            "seed": seed,
            "labels": LABELS,
            "drawn": xxhash.xxh3_64_hexdigest(self.drawn.tokens.numpy().tobytes()),
        }
        self._resume()

    def run(self) -> Sums:
        """The sums over all sequences. Refused when a gradient is not finite."""
        unembedding = Unembedding.of(self.model)
        tokens = self.drawn.tokens
        at_once = sequences_at_once(self.model, tokens.shape[1])
        saved = time.monotonic()
        lanes = Lanes(self.model)

        def work(model: LanguageModel, start: int) -> tuple[int, dict[tuple[int, str], SiteMetric]]:
            part = slice(start, min(start + at_once, len(tokens)))
            kept = self.drawn.kept[part]
            labelled = draw_labelled(kept, start, self.seed)
            sites, found = gradients(model, unembedding, tokens[part], labelled, self.names, self.seed * 1_000_003 + start)
            if start == 0:
                check_sites(sites, self.stores, tokens[0])
            return part.stop, {place: sums_of(sites[place], found[place], kept, labelled, start) for place in sites}

        def add(done: tuple[int, dict[tuple[int, str], SiteMetric]]) -> None:
            nonlocal saved
            stop, found = done
            sums = {place: self.sums[place].plus(one) for place, one in found.items()}
            bar.update(stop - self.run_already)
            self.sums, self.run_already = sums, stop  # in one statement: Ctrl-C saves both or neither
            if time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = time.monotonic()

        with tqdm(total=len(tokens), initial=self.run_already, desc="metric", unit="sequence") as bar:
            try:
                lanes.run(work, range(self.run_already, len(tokens), at_once), add)
            except BaseException:
                self._save()
                raise
            finally:
                for model in lanes.models:
                    forget_gradients(model)
        found: Sums = {}
        for (layer, site), sums in self.sums.items():
            check_metric(sums, sums.total.numel(), f"the metric of {site} at layer {layer}")
            found.setdefault(layer, {})[site] = sums
        return found

    def forget(self) -> None:
        """Removes what an interrupted estimate has saved."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _save(self) -> None:
        if self.path is None:
            return
        tensors = {}
        for (layer, site), sums in self.sums.items():
            tensors |= {f"{layer}.{site}.{name}": array for name, array in sums.arrays().items()}
        write_tensors(self.path, tensors, {"estimate": json.dumps(self.identity), "run": str(self.run_already)})

    def _resume(self) -> None:
        """Takes up what an interrupted estimate has saved; one that cannot be read, or is of another kind, is left."""
        if self.path is None or not self.path.exists() or not self.path.stat().st_size:
            return
        try:
            with safe_open(self.path, "pt") as file:
                if json.loads(file.metadata()["estimate"]) != self.identity:
                    log.info("%s is of other options: beginning anew", self.path)
                    return
                for layer, site in self.sums:
                    names = self.sums[layer, site].arrays()
                    arrays = {name: file.get_tensor(f"{layer}.{site}.{name}") for name in names}
                    self.sums[layer, site] = SiteMetric(**arrays)
                self.run_already = int(file.metadata()["run"])
        except (SafetensorError, KeyError, ValueError) as error:
            log.warning("%s cannot be read (%s): beginning anew", self.path, error)
            return
        log.info("continuing after %d sequences of %d", self.run_already, len(self.drawn.tokens))


def check_sites(
    sites: Mapping[tuple[int, str], Tensor], stores: Mapping[int, Store], tokens: Int[Tensor, " context"]
) -> None:
    """Refused unless the first sequence's sites are the rows that the stores hold of it."""
    for (layer, site), values in sites.items():
        rows = cached_rows(stores[layer], site, tokens)
        apart = float((values[0].float().cpu() - rows).norm() / rows.norm())
        if apart > APART:
            raise Refused(
                f"{site} of layer {layer} is not what {stores[layer].directory} holds of it (relative difference "
                f"{apart:.2f}): the store was made by another model, or of another layer; harvest again"
            )


def sums_of(
    site: Float[Tensor, "sequences context d"],
    gradient: Float[Tensor, "sequences context d"],
    kept: Bool[Tensor, "sequences context"],
    labelled: Bool[Tensor, "sequences context"],
    first: int,
) -> SiteMetric:
    """The sums over some sequences, the first of which has the number `first`.

    Scores at different tokens are uncorrelated, so that labels at a share of the rows give that share of the products.
    """
    device = site.device
    halves = []
    rows = []
    scale = kept.sum(1) / labelled.sum(1).clamp_min(1)
    for parity in (0, 1):
        mine = (torch.arange(first, first + len(kept)) % 2 == parity) & kept.any(1)
        g = (gradient[mine.to(device)].double() * scale[mine].double().sqrt()[:, None, None].to(device))[
            kept[mine].to(device)
        ]
        halves.append(g.T @ g)
        rows.append(len(g))
    y = site[kept.to(device)].double()
    return SiteMetric(
        gradients=torch.stack(halves).cpu(),
        rows=torch.tensor(rows, dtype=torch.float64),
        products=(y.T @ y).cpu(),
        total=y.sum(0).cpu(),
    )
