"""`python -m evaluate metrics`: what is measured of a run by itself."""

from pathlib import Path

from evaluate.compare.files import is_done, key_of, publish, show, write_json
from evaluate.compare.measure import measure
from evaluate.config import EvaluateConfig
from evaluate.metrics.measurement import Measurement
from evaluate.report.verdict import in_words
from evaluate.runs import OpenRun, open_run
from evaluate.training_log import read_log
from store.disk.files import refuse_unwritable
from store.layout import EVALUATION, METRICS
from store.shards.metric import read_metric


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
    publish(folder, [metrics], run.store, run.folder, said=in_words(metrics, cost_of_mean(run)))
    return show(folder)


def cost_of_mean(run: OpenRun) -> float | None:
    """The estimated KL of predicting the mean of the target, in nats, over the rows of the store's metric; None without."""
    metric = read_metric(run.store.target_side, run.transcoder.config.target_site)
    return None if metric is None else float((metric.fisher * metric.covariance).sum() / 2)
