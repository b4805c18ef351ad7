"""`python -m store export`: a run in another project's file layout, or a run made of a transcoder in one, and compared."""

import torch

from store.config import ExportConfig
from store.errors import Refused
from store.exports import delphi
from store.exports.card import write_card
from store.exports.fitting import layout_named, made_for, refuse_misread_name
from store.exports.gate import gate, sample_of, with_dtype
from store.exports.opening import appearing_folder, of_a_run, of_another_project, refuse_filled
from store.shards.origin import copy_origin, write_origin
from store.transcoders.layouts import other_layout_of


def export(config: ExportConfig) -> str:
    """What was written, where, and how well it agrees with the run; for people.

    Refused for a layout that cannot hold the run, and for a folder that holds something. The folder appears whole, after
    an independent reader gave the run's outputs from its files, or not at all.
    """
    if config.layout == delphi.NAME:
        return delphi.export_delphi(config)
    layout = layout_named(config.layout, others=(delphi.NAME,))
    refuse_filled(config.out)
    refuse_misread_name(config.layout, config.out)
    if config.dtype != "float32" and not layout.holds.bfloat16:
        raise Refused(f"{config.layout} holds float32 alone; leave out --dtype {config.dtype}")
    foreign = other_layout_of(config.run) is not None
    ours, store = of_another_project(config.run, config.store) if foreign else of_a_run(config.run, config.store)
    made = made_for(layout, config.layout, ours, store, config.view)
    if config.dtype == "bfloat16":
        made = with_dtype(made, torch.bfloat16)
    with appearing_folder(config.out) as partial:
        assert layout.save is not None
        layout.save(made, partial)
        if layout.holds.everything and foreign:
            assert store is not None
            write_origin(partial, store)
        elif layout.holds.everything:
            copy_origin(config.run, partial)
        found = gate(config.layout, partial, ours, made, sample_of(ours, store))
        write_card(partial, config.layout, made, found)
        names = sorted(path.name for path in partial.iterdir())
    lines = [f"{config.out}: {ours.config.name} in the layout {config.layout}"]
    lines += [f"  {config.out / name}" for name in names]
    if made.config.view != ours.config.view:
        lines.append(f"  it reads the view {made.config.view} instead of {ours.config.view}: the norm is folded into it")
    if len(ours.config.prefix_sizes) > 1 and not layout.holds.everything:
        lines.append("  this layout knows no nested prefixes: it is the whole dictionary; export.json keeps them")
    if config.layout == "circuit-tracer":
        lines.append("  circuit-tracer loads a set only with every layer of the model: make export-set writes one")
    return "\n".join([*lines, f"  {found}"])
