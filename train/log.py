"""What a run tells: a progress bar, training_log.jsonl, and wandb where it is wanted."""

import json
import logging
import netrc
import os
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from tqdm import tqdm

from train.config import TrainConfig

LOG = "training_log.jsonl"
log = logging.getLogger(__name__)


WandbMode = Literal["online", "offline", "disabled"]


def wandb_mode() -> WandbMode:
    """WANDB_MODE where it is set; else online when wandb has a key, otherwise disabled."""
    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        if mode not in get_args(WandbMode):
            raise ValueError(f"WANDB_MODE is {mode!r}; it must be online, offline or disabled")
        return mode  # type: ignore[return-value]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_wandb() else "disabled"


def _netrc_has_wandb() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class TrainingLog:
    """One line of JSON, one wandb step and one state of the bar for each record."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        self.path = config.run_directory / LOG
        _drop_lines_after(self.path, first_step)
        self.file = self.path.open("a", encoding="utf-8")
        self.bar = tqdm(
            total=config.n_steps * config.batch_rows, initial=first_step * config.batch_rows, unit="row", unit_scale=True,
            desc=f"train {config.run_directory.name}",
        )  # fmt: skip
        self.wandb: Any = None
        mode = wandb_mode()
        if mode != "disabled":
            import wandb

            self.wandb = wandb.init(
                project=config.wandb_project, name="/".join(config.run_directory.parts[-3:]), mode=mode,
                dir=str(config.run_directory), id=_run_id(config), resume="allow",
                config={key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()},
            )  # fmt: skip

    def write(self, record: dict[str, float | int | list[float]]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        self.bar.set_postfix_str(
            f"loss {record['loss']:.4f}, fvu {record['fvu']:.4f}, L0 {record['l0_norm']:.1f}, "
            f"dead {record['dead_features_percentage']:.1f}%"
        )
        if self.wandb is not None:
            prefixes = {f"fvu_prefix/{i}": value for i, value in enumerate(record["fvu_per_prefix"])}  # type: ignore[arg-type]
            self.wandb.log({k: v for k, v in record.items() if k != "fvu_per_prefix"} | prefixes, step=record["step"])

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.file.close()
        self.bar.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if kind is None else 1)


def _run_id(config: TrainConfig) -> str:
    return "-".join(config.run_directory.parts[-3:]).replace(".", "_")


def _drop_lines_after(path: Path, step: int) -> None:
    """A resumed run writes the steps after its checkpoint again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in lines))
