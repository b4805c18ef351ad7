"""The options of a harvest, read back from the recipe that its manifest holds."""

from harvest.text.mix import is_mix
from harvest.text.origin import AND, is_on_this_machine
from store.shards.recipe import RECORDED_WHEN_SET, Recipe


def options_of(recipe: Recipe) -> dict[str, object]:
    """The options of HarvestConfig that the recipe decides, by name: all that give a store its numbers, but for the file
    of a chat template."""
    dataset, subset, revision = _data_set(recipe.dataset, recipe.dataset_revision)
    shard_format, _, compression = recipe.format.partition("-")
    recorded = {name: getattr(recipe, name) for name in RECORDED_WHEN_SET}
    return {
        "model": recipe.model,
        "layer": recipe.layer,
        "sites": recipe.sites,
        "dataset": dataset,
        "dataset_revision": revision,
        "subset": subset,
        "split": recipe.dataset_split,
        "text_column": recipe.text_column,
        "context": recipe.context,
        "shard_tokens": recipe.shard_sequences * recipe.context,
        "heldout_every": recipe.heldout_every,
        "dtype": recipe.dtype,
        "format": shard_format,
        "compression": compression or "none",
        "compute_dtype": recipe.compute_dtype,
        "seed": recipe.seed,
        "tokenizer_hash": recipe.tokenizer_hash if recipe.tokens_column else None,
        **{name: value for name, value in recorded.items() if value is not None},
    }


def _data_set(name: str, revision: str) -> tuple[str, str | None, str | None]:
    """The options dataset, subset and dataset_revision by the name and revision that a recipe has."""
    if is_on_this_machine(name):
        return name, None, None
    if not is_mix(name):
        dataset, _, subset = name.partition(":")
        return dataset, subset or None, revision
    parts = [part.rpartition(":") for part in name.split(",")]
    sets = [_data_set(own, at) for (own, _, _), at in zip(parts, revision.split(AND), strict=True)]
    datasets = [f"{dataset}:{weight}" for (dataset, _, _), (_, _, weight) in zip(sets, parts, strict=True)]
    subsets = [subset or "" for _, subset, _ in sets]
    revisions = [at or "" for _, _, at in sets]
    return ",".join(datasets), ",".join(subsets), ",".join(revisions)
