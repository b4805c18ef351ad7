"""`python -m store COMMAND`: looks after a store, without a language model."""

from store.cli import Commands, run_command
from store.config import ExportConfig, ExportSetConfig, VerifyConfig

COMMANDS: Commands = {
    "verify": (VerifyConfig, "store.verify:verify"),
    "export": (ExportConfig, "store.exports.export:export"),
    "export-set": (ExportSetConfig, "store.exports.sets:export_set"),
}


def main() -> None:
    run_command("store", COMMANDS)


if __name__ == "__main__":
    main()
