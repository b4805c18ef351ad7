"""Costs of a harvest by its layers and by the tokens of a shard."""

import gc
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from harvest.config import HarvestConfig
from harvest.loop import harvest
from tests.bench.scale.tables import Costs, Table, cpu, peak
from tests.harvest.model.making import HEADS, save_tiny
from tests.making import make_tokenizer

WIDTH = 128
CONTEXT = 128


def tables(small: bool) -> list[Table]:
    layers = [1, 2] if small else [1, 2, 8]
    tokens = [512, 1024] if small else [1024, 4096, 16_384]
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model", max(layers))
        text = make_text(folder / "text.jsonl", 4 * max(tokens))
        by_layer, by_shard = Costs(), Costs()
        of_harvest(config_of(folder / "warm", model, text, 1, tokens[0]), Costs())
        for n in layers:
            of_harvest(config_of(folder / f"layers-{n}", model, text, n, tokens[1]), by_layer)
        for n in tokens:
            of_harvest(config_of(folder / f"tokens-{n}", model, text, 2, n), by_shard)
        return [Table("layers harvested", layers, by_layer), Table("tokens of a shard", tokens, by_shard)]


def make_model(folder: Path, layers: int, width: int = WIDTH) -> str:
    """A random Gemma 2."""
    options = HEADS | dict(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers)
    options |= dict(sliding_window=CONTEXT, max_position_embeddings=CONTEXT)
    return save_tiny(folder, "Gemma2ForCausalLM", ("Gemma2Config", options), make_tokenizer())


def make_text(path: Path, tokens: int) -> Path:
    """Short documents of so many characters and more, each of them a token."""
    line = "A document says words, " * 2
    path.write_text((json.dumps({"text": line}) + "\n") * (tokens // len(line) + 1))
    return path


def config_of(store: Path, model: str, text: Path, layers: int, shard_tokens: int) -> HarvestConfig:
    """Three shards of the model's first layers."""
    return HarvestConfig(
        model=model,
        layer=tuple(range(layers)) if layers > 1 else 0,
        dataset=str(text),
        tokens=3 * shard_tokens,
        shard_tokens=shard_tokens,
        context=CONTEXT,
        heldout_every=2,
        batch_sequences=4,
        store=store,
        device="cpu",
        compute_dtype="float32",
        metric_sequences=0,
    )


def of_harvest(config: HarvestConfig, found: Costs) -> None:
    gc.collect()
    with peak() as most:
        seconds = cpu(lambda: harvest(config))
    found.note("three shards, CPU s", seconds)
    found.note("three shards, peak MB", most[0])
