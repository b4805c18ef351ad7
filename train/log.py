"""The log of a run: a progress bar, training_log.jsonl, and wandb where it is wanted."""

import json
import logging
import netrc
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import xxhash
from torch import Tensor
from tqdm import tqdm

from store.disk.files import write_text
from store.disk.remote import Remote
from store.errors import Refused
from store.layout import CONFIG, TRAINING_LOG, WEIGHTS
from train.advice import figures_of
from train.config import TrainConfig

NAME_LENGTH = 128
"""Characters that wandb takes in a name."""
READABLE = 64
"""Characters of an id that tell people which folder it is; a digest of the whole path follows."""
COMPILING = "compiling the first step"
log = logging.getLogger(__name__)
WandbMode = Literal["online", "offline", "disabled"]


def wandb_mode() -> WandbMode:
    """WANDB_MODE if it is set, otherwise online if wandb has a key, otherwise disabled. Refused for an unknown mode."""
    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        if mode not in get_args(WandbMode):
            raise Refused(f"WANDB_MODE is {mode!r}; it must be online, offline or disabled")
        return mode  # type: ignore[return-value]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_wandb() else "disabled"


def _netrc_has_wandb() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


MOST_MEASURING = 0.01
"""Share of the time that measurements on held-out rows may take where nobody chose their steps."""


class MeasuringTime:
    """How long a training has measured dictionaries on held-out rows, and whether it may do so again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began = clock()
        self.total = 0.0
        self.last: float | None = None
        """What all dictionaries took when they were last measured."""

    def allows(self, heldout_rows: int, trained_rows: int) -> bool:
        """Whether so many held-out rows may be measured now: a share of MOST_MEASURING would not be exceeded if it takes
        as long as the last time. The first time a row is taken to cost as much as training on two does.

        trained_rows: since this began.
        """
        elapsed = self.clock() - self.began
        expected = elapsed * 2 * heldout_rows / trained_rows if self.last is None else self.last
        allowed = self.total + expected <= MOST_MEASURING * elapsed
        if allowed:
            self.last = 0.0
        return allowed

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Counts the time of the block: one dictionary is measured."""
        start = self.clock()
        yield
        seconds = self.clock() - start
        self.total += seconds
        self.last = seconds + (self.last or 0.0)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A line of training_log.jsonl: the last step's losses, and how the run is."""

    step: int
    """Steps done."""
    tokens: int
    """Rows trained on."""
    loss: float
    """The sum of the following, AuxK's by its weight."""
    l2_loss: float
    aux_loss: float
    sparsity_loss: float
    loss_spike: float
    """The largest loss since the last line, in units of its recent mean."""
    missed_steps: int
    """Steps since the last line that missed their latents and changed nothing."""
    fvu: float
    """Of the whole dictionary, in this batch."""
    fvu_min: float
    fvu_max: float
    fvu_mean: float
    fvu_per_prefix: list[float]
    """As the loss has it: each prefix with its share of the latents that the whole dictionary keeps. A prefix by itself,
    which topk fills with its own k largest, is in heldout_fvu_per_prefix."""
    l0_norm: float
    """Mean active latents per row."""
    dead_features_percentage: float | None
    """None while no latent can be known to be dead."""
    learning_rate: float
    rows_per_second: float
    """Since the last line."""
    data_wait_share: float
    """Share of that time that steps waited for rows."""


@dataclass(frozen=True, kw_only=True)
class HeldoutRecord:
    """What a line has beside a Record after a measurement on held-out rows."""

    heldout_fvu: float
    heldout_l0: float
    heldout_dead_fraction: float
    """Share of latents that fire on none of these rows."""
    heldout_fvu_per_prefix: list[float]


class TrainingLog:
    """Writes each record as a line of JSON, a step at wandb and the text of the bar; a silent log writes nothing."""

    def __init__(
        self, config: TrainConfig, first_step: int, position: int = 0, silent: bool = False, bar: bool = True
    ) -> None:
        self.config = config
        self.path = config.run_directory / TRAINING_LOG
        mode = "disabled" if silent else wandb_mode()
        self.wandb: Any = None if mode == "disabled" else _wandb_run(config, mode)
        if not silent:
            _drop_lines_after(self.path, first_step)
        self.file = Path(os.devnull if silent else self.path).open("a", encoding="utf-8")  # noqa: SIM115
        self.bar = tqdm(
            total=config.n_steps * config.batch_rows,
            initial=first_step * config.batch_rows,
            unit="row",
            unit_scale=True,
            desc=f"train {config.run_directory.name}",
            position=position,
            disable=silent or not bar,
        )
        self.figures = COMPILING
        self.bar.set_postfix_str(self.figures)

    def write(self, record: Record, heldout: HeldoutRecord | None) -> None:
        line = asdict(record) | ({} if heldout is None else asdict(heldout))
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.figures = f"loss {record.loss:.4f}, {figures_of(line)}"
        self.bar.set_postfix_str(self.figures)
        with self._harmless():
            if self.wandb is not None:
                self.wandb.log(_flat(line), step=record.step)

    def waits(self, what: str | None) -> None:
        """Shows on the bar what the training waits for; None when it has come."""
        self.bar.set_postfix_str(what or self.figures, refresh=what is not None)

    def first_step_done(self) -> None:
        """Begins the bar's clock again: the first step compiles, and its time says nothing of the others."""
        self.bar.unpause()
        self.figures = ""
        self.waits(None)

    def histograms(self, by_latent: dict[str, Tensor], step: int) -> None:
        """Sends a histogram of each tensor to wandb."""
        with self._harmless():
            if self.wandb is None:
                return
            import wandb

            drawn = {f"histogram/{name}": wandb.Histogram(value.tolist()) for name, value in by_latent.items()}
            self.wandb.log(drawn, step=step)

    def artefact(self, folder: Path) -> None:
        """Sends the finished transcoder in a folder to wandb, as an artifact."""
        with self._harmless():
            if self.wandb is None:
                return
            import wandb

            artifact = wandb.Artifact(_run_id(self.config), type="transcoder")
            for name in (CONFIG, WEIGHTS):
                artifact.add_file(str(folder / name))
            self.wandb.log_artifact(artifact)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.file.close()
        self.bar.close()
        with self._harmless():
            if self.wandb is not None:
                self.wandb.finish(exit_code=0 if kind is None else 1)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Nothing that wandb raises within ends the training: it is told once, and the run goes on without wandb."""
        try:
            yield
        except Exception as error:  # of wandb's own, of its service's sockets, of the files that it writes: any
            self.wandb = None
            log.warning("%s: wandb failed (%s); the training goes on without it", self.config.run_directory, error)


def _flat(line: dict[str, Any]) -> dict[str, float | int]:
    """The numbers of a line, one of its own for each prefix: wandb draws curves of numbers."""
    found = {}
    for name, value in line.items():
        if isinstance(value, list):
            for index, of_prefix in enumerate(value):
                found[f"{name.removesuffix('_per_prefix')}_prefix/{index}"] = of_prefix
        elif value is not None:
            found[name] = value
    return found


def _wandb_run(config: TrainConfig, mode: WandbMode) -> Any:
    """The run at wandb, which a resumed training continues. Where wandb refuses, nobody being logged in, say: Refused if
    WANDB_MODE asks for it, otherwise None."""
    import wandb

    try:
        return wandb.init(
            project=config.wandb_project,
            name="/".join(config.run_directory.parts[-3:])[-NAME_LENGTH:],
            mode=mode,
            dir=str(config.run_directory),
            id=_run_id(config),
            resume="allow",
            reinit="create_new",
            config=_options(config),
        )
    except wandb.Error as error:
        if "WANDB_MODE" not in os.environ:  # nobody asked for it in this run: a key alone switched it on
            log.warning("%s: wandb cannot log (%s); the training goes on without it", config.run_directory, error)
            return None
        raise Refused(f"wandb cannot log ({error}); or set WANDB_MODE to offline or disabled") from None


def _options(config: TrainConfig) -> dict[str, Any]:
    """The options as wandb shows them: paths as text, and what scales with the run as it was taken."""
    found = {key: str(value) if isinstance(value, Path | Remote) else value for key, value in asdict(config).items()}
    return found | {"lr": config.peak_lr, "warmup_steps": config.n_warmup_steps, "dead_after": config.n_dead_after}


def _run_id(config: TrainConfig) -> str:
    """A name for runs and artifacts at wandb, of its characters and length, and of this run's folder alone."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(config.run_directory.parts[-3:]))
    digest = xxhash.xxh3_64_hexdigest(str(config.run_directory.resolve()).encode())
    return f"{readable[-READABLE:].lstrip('-_')}-{digest}"


def _drop_lines_after(path: Path, step: int) -> None:
    """Drops the lines of steps after a checkpoint, which a resumed run writes again, and a line that is cut short."""
    if path.exists():
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_text(path, "".join(line for line in whole if json.loads(line)["step"] <= step))
