"""Everything that is measured of some transcoders on one store, at their own L0 and at an equal one.

The language model and the probes are imported where they are wanted: that takes seconds, and most measurements do not.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from evaluate.checks import checks_of
from evaluate.config import CompareConfig, EvaluateConfig
from evaluate.forward import Forward
from evaluate.frontier import Dial, sweep
from evaluate.metrics import Accumulator, measure_rows, result_of, with_intervals
from evaluate.rows import Facts
from store.devices import resolve_device
from store.reader import Store, check_shards
from store.transcoder import Transcoder

if TYPE_CHECKING:
    from harvest.model import LanguageModel

log = logging.getLogger(__name__)

FRONTIER_ROWS = 8192
"""Held-out rows, the first ones on disk, on which the frontier is drawn."""


def measure(config: EvaluateConfig, store: Store, transcoders: Sequence[Transcoder]) -> list[dict]:
    """Metrics of every transcoder on the held-out rows, with `name`, `source`, `architecture` and `warnings`.

    With a second transcoder, that one's `matched` holds its paired difference from the first at equal L0; with a
    CompareConfig also the frontier of both, and what they cost the language model.
    """
    device = resolve_device(config.device)
    compared = config if isinstance(config, CompareConfig) and len(transcoders) > 1 else None
    model = open_language_model(store, device) if compared and compared.sequences else None
    if config.check:
        check_shards(store, "heldout")
    dials = [Dial(transcoder, store, device) for transcoder in transcoders[:2]] if len(transcoders) > 1 else []
    moved = dials[0].at(dials[1].l0) if dials else None
    in_pass = [*(dial.transcoder for dial in dials), *transcoders[len(dials) :]]
    extra = [] if moved is None or moved is in_pass[0] else [moved]
    accumulators, facts = measure_rows([*in_pass, *extra], store, "heldout", config.batch_rows, device)
    results = [result_of(a, facts, store) | {"split": "heldout"} for a in accumulators[: len(transcoders)]]
    with_intervals(accumulators[: len(transcoders)], facts, results)
    if moved is not None:
        results[1]["matched"] = equal_l0(accumulators[-1] if extra else accumulators[0], accumulators[1], facts)
    if compared and compared.frontier:
        add_frontier(results, dials, store, config.batch_rows, device)
    if compared and model:
        from evaluate.splice import splice

        variants = [moved, *in_pass[1:], in_pass[0]] if moved is not None and extra else in_pass
        spliced = splice(variants, store, model, compared.sequences, compared.every_prefix)
        add_spliced(results, spliced, matched=moved is not None)
    if compared and compared.probes:
        add_probes(results, in_pass, store)
    for transcoder, result in zip(transcoders, results, strict=True):
        c = transcoder.config
        result |= {"name": c.name, "source": c.source, "architecture": c.architecture, "view": c.view}
        result["warnings"] = [check["detail"] for check in checks_of(result, store) if not check["holds"]]
        for warning in result["warnings"]:
            log.warning("%s", warning)
    return results


def open_language_model(store: Store, device: torch.device) -> "LanguageModel":
    """The model of a store, opened before anything is measured, so that one that cannot be had is told at once."""
    from evaluate.splice import open_model

    return open_model(store, device)


def add_probes(results: list[dict], transcoders: Sequence[Transcoder], store: Store) -> None:
    """Adds absorption, splitting, sparse_probing and tpp to all, and absorption by prefix."""
    from evaluate.probes import Fitted, first_letters, probe_all
    from evaluate.tasks import fit_and_test
    from harvest.text import load_tokenizer

    fit, test = fit_and_test(store, load_tokenizer(store.manifest.recipe).convert_ids_to_tokens)
    fitted: Fitted = {}
    for transcoder, result in zip(transcoders, tqdm(results, desc="probes", unit="transcoder"), strict=True):
        result |= probe_all(transcoder, store.norm, fit, test, fitted)
        result["absorption_per_prefix"] = {
            str(size): first_letters(Forward(transcoder.prefix(size)), store.norm, fit, test, fitted)["absorption"]
            for size in transcoder.config.prefix_sizes[:-1]
        } | {str(transcoder.config.d_sae): result["absorption"]}


def equal_l0(ours: Accumulator, theirs: Accumulator, facts: Facts) -> dict:
    """Both L0s, both FVUs, and in `minus_ours` their metrics minus ours, once our threshold was moved to their L0."""
    pair: list[dict] = [{}, {}]
    with_intervals([ours, theirs], facts, pair)
    l0 = [float(a.l0[:, -1].double().mean()) for a in (ours, theirs)]
    fvu = [float(a.sse[:, -1].sum() / facts.variation.sum()) for a in (ours, theirs)]
    return {"l0": l0, "fvu": fvu, "minus_ours": pair[1]["minus_first"]}


def add_frontier(results: list[dict], dials: Sequence[Dial], store: Store, rows: int, device: torch.device) -> None:
    """Adds `frontier` to the first two: L0 and FVU with the threshold moved, on the first FRONTIER_ROWS rows."""
    variants = sweep(dials)
    flat = [variant for group in variants for variant in group]
    accumulators, facts = measure_rows(flat, store, "heldout", rows, device, limit=FRONTIER_ROWS)
    points = [
        {"l0": float(a.l0[:, -1].double().mean()), "fvu": float(a.sse[:, -1].sum() / facts.variation.sum())}
        for a in accumulators
    ]
    for result, group in zip(results[: len(variants)], variants, strict=True):
        result["frontier"], points = sorted(points[: len(group)], key=lambda point: point["l0"]), points[len(group) :]


def add_spliced(results: list[dict], spliced: list[dict], matched: bool) -> None:
    """Adds what splicing found: the first of `spliced` is ours at their L0, a surplus last one ours as it is."""
    differences = [found.pop("minus_first", {}) for found in spliced]
    ours = spliced.pop() if len(spliced) > len(results) else spliced[0]
    for result, found in zip(results, [ours, *spliced[1:]], strict=True):
        result |= found
    if matched:
        results[1]["matched"]["minus_ours"] |= differences[1]
