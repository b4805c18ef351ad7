"""`python -m store COMMAND`: looks after a store, without a language model."""

from store.cli import Commands, run_command
from store.config import ExportConfig, VerifyConfig

COMMANDS: Commands = {
    "verify": (VerifyConfig, "store.verify:verify"),
    "export": (ExportConfig, "store.exports.export:export"),
}


def main() -> None:
    run_command("store", COMMANDS)


if __name__ == "__main__":
    main()
