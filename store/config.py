"""Options of `python -m store`."""

from dataclasses import dataclass

from store.cli import StoreOptions


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(StoreOptions):
    """Read every shard of a store and name each that is missing, cut short or changed; exit code 1 then."""
