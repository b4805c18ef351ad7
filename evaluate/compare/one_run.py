"""`python -m evaluate metrics`: what is measured of a run by itself."""

from pathlib import Path

from evaluate.compare.files import is_done, key_of, publish, show, write_json
from evaluate.compare.measure import measure
from evaluate.config import EvaluateConfig
from evaluate.metrics.measurement import Measurement
from evaluate.runs import open_run
from evaluate.training_log import read_log
from store.disk.files import refuse_unwritable
from store.layout import EVALUATION, METRICS


def evaluate_run(config: EvaluateConfig) -> Path:
    """The folder with metrics.json, summary.txt and report.html of a run, measured unless it was before.

    Refused when store and run do not fit, Damaged when the run's files, the shards or earlier results cannot be read.
    """
    run = open_run(config)
    folder = run.folder / EVALUATION
    refuse_unwritable(folder, "folder of results", "RUN")
    read_log(run.folder)  # Damaged now, not when the report is drawn after all was measured
    key = key_of(run.folder, run.store, None)
    if not config.force and is_done(Measurement, folder / METRICS, key):
        return show(folder)
    [metrics] = measure(config, run.store, [run.transcoder])
    write_json(folder / METRICS, metrics.plus(key=key))
    publish(folder, [metrics], run.store, run.folder)
    return show(folder)
