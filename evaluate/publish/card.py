"""The model card of a run on the hub, made from the run's own files: nothing in it is written by hand."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.baselines import hub_name_of
from evaluate.metrics.measurement import Measurement
from evaluate.publish.again import commands
from evaluate.report.comparison import cell, prefix_rows, rows_of
from evaluate.text import markdown_table
from harvest.model.depth import architecture_of
from harvest.model.families import FAMILIES
from store.layout import model_slug
from store.shards.origin import Side
from store.transcoders.transcoder import Transcoder, TranscoderConfig

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""Of a model or a data set on the hub."""

LICENCES = {
    "gemma": "gemma",
    "gpt2": "mit",
    "smollm": "apache-2.0",
    "qwen": "apache-2.0",
    "pythia": "apache-2.0",
    "olmo": "apache-2.0",
}
"""In the hub's words, by the beginning of a model's name."""

VIEWS = {
    "raw": "`{site}` as it is",
    "rms": "the residual stream over its root mean square, before the norm's gain (an RMS norm's `ln2.hook_normalized`)",
    "normed": "the residual stream after the whole norm before the MLP, gain included: what the MLP itself reads",
}
"""What each view of the source is."""

LOADING = {
    "saelens": """from huggingface_hub import snapshot_download
from sae_lens import SAE

folder = snapshot_download("{repo}", allow_patterns="saelens/*")
transcoder = SAE.load_from_disk(f"{{folder}}/saelens")""",
    "gemma-scope-2": """from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

arrays = load_file(hf_hub_download("{repo}", "gemma-scope-2/params.safetensors"))  # w_enc, w_dec, ...""",
    "sparsify": """from huggingface_hub import snapshot_download
from sparsify import SparseCoder

folder = snapshot_download("{repo}", allow_patterns="sparsify/*")
transcoder = SparseCoder.load_from_disk(f"{{folder}}/sparsify")""",
}
"""How each project loads its layout, by layout."""

OURS = """from pathlib import Path

from huggingface_hub import snapshot_download

from store.shards.origin import read_origin, store_without_rows
from store.transcoders.transcoder import Transcoder

folder = Path(snapshot_download("{repo}"))
transcoder = Transcoder.load(folder)
norm = store_without_rows(folder, read_origin(folder)).norm
x = transcoder.view({source}, norm)  # [rows, {d_in}]: what it reads
latents = transcoder.encode(x)  # [rows, {d_sae}], 0 where silent
{target} = transcoder.decode(latents, x)  # [rows, {d_out}]"""
"""How ours is loaded; `source` and `target` name the sites."""


@dataclass(frozen=True, kw_only=True)
class Carded:
    """What a card is made from."""

    repo: str
    transcoder: Transcoder
    source: Side
    """The store that it was trained on."""
    options: Mapping[str, Any]
    """Of its training."""
    measured: Measurement
    licence: str | None
    layouts: Sequence[str]
    gates: Mapping[str, str]
    """By layout: how well what was written agrees with the run."""
    files: Sequence[Path]
    """Everything in the repository, from its top on."""


def card(facts: Carded) -> str:
    """README.md of the repository."""
    config = facts.transcoder.config
    sections = [
        _front_matter(facts),
        f"# {config.name}: {model_slug(config.model)}, layer {config.layer}",
        _opening(config),
        "## Figures",
        *_figures(facts),
        "## What it reads and predicts",
        _sites(facts),
        "## How it was trained",
        *_recipe(facts),
        "## How to load it",
        *_loading(facts),
        "## Limits",
        _limits(facts),
        "## Cite",
        _cite(),
    ]
    return "\n\n".join(sections) + "\n"


def licence_of(model: str) -> str | None:
    """The licence of a model that is known here, in the hub's words."""
    name = model_slug(hub_name_of(model)).lower()
    return next((licence for start, licence in LICENCES.items() if name.startswith(start)), None)


def _front_matter(facts: Carded) -> str:
    """The card's metadata, in YAML. `sdk` and `app_file` let a Space of the same files show the browser."""
    config = facts.transcoder.config
    recipe = facts.source.recipe
    nested = ["matryoshka"] if len(config.prefix_sizes) > 1 else []
    kind = "transcoder" if config.source_site != config.target_site else "sparse-autoencoder"
    tags = [kind, "mechanistic-interpretability", *nested, *facts.layouts, model_slug(hub_name_of(config.model)).lower()]
    lines = ["---"]
    if facts.licence is not None:
        lines.append(f"license: {facts.licence}")
    if HUB_NAME.fullmatch(hub_name_of(config.model)) and not Path(config.model).exists():
        lines.append(f"base_model: {hub_name_of(config.model)}")
    if HUB_NAME.fullmatch(recipe.dataset) and not Path(recipe.dataset).exists():
        lines += ["datasets:", f"- {recipe.dataset}"]
    if "saelens" in facts.layouts:
        lines.append("library_name: saelens")
    lines += ["tags:", *(f"- {tag}" for tag in dict.fromkeys(tags))]
    if Path("index.html") in facts.files:
        lines += ["sdk: static", "app_file: index.html"]
    return "\n".join([*lines, "---"])


def _opening(config: TranscoderConfig) -> str:
    *smaller, last = (f"{size:,}" for size in config.prefix_sizes)
    nested = (
        f" Its first {', '.join(smaller)} and {last} latents are each a dictionary by themselves."
        if len(config.prefix_sizes) > 1
        else ""
    )
    goal = f" It aims at {config.k} active latents a row." if config.k else ""
    return (
        f"A sparse dictionary of {config.d_sae:,} latents that reads `{config.source_site}` of layer {config.layer} of "
        f"{hub_name_of(config.model)} and predicts `{config.target_site}` of layer "
        f"{config.layer if config.target_layer is None else config.target_layer}.{goal}{nested}"
    )


def _figures(facts: Carded) -> list[str]:
    """The table of what was measured, on which rows, and the table by prefix."""
    measured = facts.measured
    rows = [[label.label, cell(measured, label), label.explained] for label in rows_of([measured])]
    blocks = ["\n".join(markdown_table(rows, ["held-out metric", "value [95% interval]", "meaning"]))]
    blocks.append(
        f"Measured on {measured.n_rows:,} held-out rows of {measured.n_documents:,} documents, which the training has not "
        f"seen. Store `{measured.store_fingerprint}`. Intervals are by bootstrap over documents."
    )
    if len(measured.per_prefix) > 1:
        by_prefix = [[label, *(text.partition(" [")[0] for text in cells)] for label, cells in prefix_rows(measured)]
        heads = ["by prefix", *(f"{int(size):,}" for size in measured.per_prefix)]
        blocks.append("\n".join(markdown_table(by_prefix, heads)))
    return blocks


def _sites(facts: Carded) -> str:
    """Both sites in the words of transformers and of TransformerLens."""
    config = facts.transcoder.config
    target_layer = config.layer if config.target_layer is None else config.target_layer
    family = FAMILIES.get(architecture_of(config.model) or "")
    rows = []
    for role, site, layer in (("reads", config.source_site, config.layer), ("predicts", config.target_site, target_layer)):
        if family is None:
            where = "the model's family is not on this machine"
        elif site == "mlp_out":
            where = f"output of `{family.blocks}.{layer}.{family.mlp_out}`"
        elif site == "resid_mid" and family.resid_mid is not None:
            where = f"input of `{family.blocks}.{layer}.{family.resid_mid}`"
        else:
            where = f"input of `{family.blocks}.{layer}`" if site == "resid_pre" else "see TransformerLens"
        rows.append([f"{role} `{site}`", where, f"`blocks.{layer}.hook_{site}`"])
    table = "\n".join(markdown_table(rows, ["", "transformers", "TransformerLens"]))
    recipe = facts.source.recipe
    left_out = f"The tokens {list(recipe.excluded_tokens)} were left out: latents there mean nothing"
    excluded = left_out if recipe.excluded_tokens else "No token was left out"
    view = VIEWS[config.view].format(site=config.source_site)
    return (
        f"{table}\n\nIts input, the view `{config.view}`, is {view}. "
        f"Its output is in the units of `{config.target_site}`.\n\n"
        f"{excluded}. Give the model texts of at most {recipe.context} tokens that begin with its BOS token."
    )


def _recipe(facts: Carded) -> list[str]:
    recipe = facts.source.recipe
    options = facts.options
    said = {
        "model": f"{recipe.model}, revision {recipe.model_revision}, run in {recipe.compute_dtype}",
        "text": f"{recipe.dataset} ({recipe.dataset_revision}), rows of {recipe.context} tokens",
        "tokens harvested": "not recorded" if facts.source.tokens is None else f"{facts.source.tokens:,}",
        "rows trained on": f"{options['tokens']:,}" if "tokens" in options else "not recorded",
        "loss": loss_of(options),
    }
    shown = ("activation", "k", "d_sae", "prefix_sizes", "batch_rows", "lr", "seed")
    said |= {name: str(options[name]) for name in shown if options.get(name) is not None}
    said["store"] = f"fingerprint `{facts.source.fingerprint}`, activations in {recipe.dtype}"
    said["libraries"] = ", ".join(f"{name} {version}" for name, version in recipe.libraries.items())
    table = markdown_table([[name, value] for name, value in said.items()], ["", ""])
    if not options:
        return ["\n".join(table)]
    lacking = "" if facts.source.tokens is not None else " (how many tokens the store had was not recorded yet)"
    template = "" if recipe.chat_template is None else f", with the chat template whose hash is `{recipe.chat_template}`"
    return ["\n".join(table), f"To make it again{template}{lacking}:\n\n{commands(facts.source)}"]


def loss_of(options: Mapping[str, Any]) -> str:
    """What a run was trained on, by its options, those of an earlier version too."""
    if not options:
        return "not recorded"
    view = options.get("target_view")
    if view != "fisher":
        return f"mean squared error{' of half-whitened targets' if view == 'whitened' else ''}, summed over the prefixes"
    earlier = f"{options.get('fisher_mix')} plain"
    rest = f"{options['whitening']} half-whitened" if "whitening" in options else earlier
    return f"errors weighed by what they cost the language model (Fisher view, {rest}), summed over the prefixes"


def _loading(facts: Carded) -> list[str]:
    config = facts.transcoder.config
    sites = {"source": config.source_site, "target": config.target_site}
    if config.source_site == config.target_site:
        sites["target"] = f"recon_of_{config.target_site}"
    ours = OURS.format(repo=facts.repo, d_in=config.d_in, d_sae=config.d_sae, d_out=config.d_out, **sites)
    blocks = [f"```python\n{ours}\n```"]
    for layout in facts.layouts:
        code = LOADING.get(layout, "").format(model=hub_name_of(config.model), repo=facts.repo)
        gate = facts.gates[layout].removeprefix("gate: ")
        if layout == "circuit-tracer":
            gate += ". It is one layer of a set; `make export-set` makes whole ones"
        blocks.append(f"`{layout}/` holds the same for {layout}: {gate}" + (f"\n\n```python\n{code}\n```" if code else ""))
    if any(path.parts[0] == "activation_samples" for path in facts.files):
        blocks.append("`activation_samples/features.parquet` holds what every latent responds to; `index.html` shows it.")
    return blocks


def _limits(facts: Carded) -> str:
    said = []
    if facts.measured.dead_fraction is not None:
        dead = round(facts.measured.dead_fraction * facts.transcoder.config.d_sae)
        said.append(f"{dead:,} of {facts.transcoder.config.d_sae:,} latents never fire on the held-out rows.")
    if not facts.measured.has("kl"):
        said.append("What it costs the language model was not measured with the model itself.")
    if facts.measured.seeds is None:
        said.append("One seed was trained: what another seed would change is not known.")
    said += [f"{warning}." for warning in facts.measured.warnings]
    licence = "that of the base model" if facts.licence is None else f"`{facts.licence}`, that of the base model"
    said.append(f"The licence is {licence}.")
    return " ".join(said)


def _cite() -> str:
    return (
        "Matryoshka dictionaries: arXiv 2503.17547. BatchTopK: arXiv 2412.06410. Transcoders: arXiv 2406.11944. Made with "
        "Matryoshka Transcoders, whose reports say how each figure is measured."
    )
