"""`python -m evaluate COMMAND`: parses the options, calls the command, prints the paths of what it wrote."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from evaluate.browse.config import BrowseConfig, BrowseExportConfig
from evaluate.circuit.config import CircuitConfig
from evaluate.compare.config import CompareConfig
from evaluate.config import BaselinesConfig, EvaluateConfig
from evaluate.early import check_places
from evaluate.features.config import AnalyzeConfig, CompareLayersConfig, FeaturesConfig
from evaluate.features.summary import read_summary
from evaluate.judge.config import JudgeConfig, JudgeExportConfig, JudgeScoreConfig
from evaluate.model.config import ImportanceConfig, InterveneConfig
from evaluate.publish.config import ExportFeaturesConfig, PublishNeuronpediaConfig, PushConfig
from evaluate.sets.config import CompareSetConfig
from store.cli import Commands, run_command
from store.disk.suggest import next_line
from store.layers.words import with_names_of_store
from store.layout import (
    COLLECTION_SUMMARY,
    COMPARISON,
    CONFIG,
    FEATURES,
    ITEMS,
    METRICS,
    REPORT,
    REPORT_MARKDOWN,
    SCORES,
    SET_RESULT,
    SUMMARY,
)
from store.usage import values_of

COMMANDS: Commands = {
    "metrics": (EvaluateConfig, "evaluate.compare.one_run:evaluate_run"),
    "compare": (CompareConfig, "evaluate.compare.layers:compare"),
    "compare-set": (CompareSetConfig, "evaluate.sets.command:compare_set"),
    "baselines": (BaselinesConfig, "evaluate.baselines:list_baselines"),
    "features": (FeaturesConfig, "evaluate.features.samples:collect_samples"),
    "analyze": (AnalyzeConfig, "evaluate.features.analyze:analyze"),
    "compare-layers": (CompareLayersConfig, "evaluate.features.partners:match_features"),
    "circuit": (CircuitConfig, "evaluate.circuit.map:circuit"),
    "browse": (BrowseConfig, "evaluate.browse.server:browse"),
    "browse-export": (BrowseExportConfig, "evaluate.browse.export:export"),
    "push": (PushConfig, "evaluate.publish.push:push"),
    "export-features": (ExportFeaturesConfig, "evaluate.publish.command:export_features"),
    "publish-neuronpedia": (PublishNeuronpediaConfig, "evaluate.publish.upload:upload"),
    "intervene": (InterveneConfig, "evaluate.model.intervene:intervene"),
    "importance": (ImportanceConfig, "evaluate.model.importance:importance"),
    "judge-export": (JudgeExportConfig, "evaluate.judge.questions:export_questions"),
    "judge": (JudgeConfig, "evaluate.judge.ask:judge"),
    "judge-score": (JudgeScoreConfig, "evaluate.judge.score:score_answers"),
}
SHOWN = (
    "index.html",
    REPORT,
    SUMMARY,
    REPORT_MARKDOWN,
    METRICS,
    COMPARISON,
    SET_RESULT,
    FEATURES,
    COLLECTION_SUMMARY,
    ITEMS,
    SCORES,
)


def written(config: object, result: Path | str | None) -> str:
    """The paths of the files that a command left for people, a line each; or what it says itself."""
    if result is None or isinstance(result, str):
        return result or ""
    folder = result
    return "\n".join(str(folder / file) for file in SHOWN if (folder / file).exists())


def brief(config: object, result: Path | str | None) -> str | None:
    """The figures of one of several layers in a line; None for a command that has none, whose text is printed whole."""
    if isinstance(config, FeaturesConfig):
        summary = read_summary(config.folder)
        assert summary is not None
        return f"{summary.features_with_samples:,} features fire, {summary.dead_features:,} never do"
    if isinstance(config, AnalyzeConfig):
        return "the report is written"
    if type(config) is not EvaluateConfig or not isinstance(result, Path):
        return None
    found = json.loads((result / METRICS).read_text())
    cost = f"estimated KL {found['estimated_kl']:.4f}, " if "estimated_kl" in found else ""
    return f"{cost}FVU {found['fvu']:.4f}, L0 {found['l0_mean']:.1f}, dead {found['dead_fraction']:.2%}"


def then(configs: Sequence[object]) -> str | None:
    """What usually follows: metrics, then a comparison, then what latents respond to, then the browser."""
    config = configs[0]
    if isinstance(config, FeaturesConfig):
        beside = bool(config.baseline or config.l0)  # a baseline becomes a run beside the run
        runs = [one.run_directory for one in configs if isinstance(one, FeaturesConfig)]
        results = {run.parent if beside else run for run in runs}
        inside = all(folder.is_relative_to(BrowseConfig.results) for folder in results)
        return next_line("evaluate", "browse", results=None if inside else _common(results))
    if not isinstance(config, EvaluateConfig) or len(configs) > 1:
        return None
    options = {"run": config.run_directory, "store": config.store, "target_store": config.target_store}
    if type(config) is EvaluateConfig:
        return next_line("evaluate", "compare" if has_published_baseline(config) else "features", **options)
    if isinstance(config, CompareConfig) and len(config.layers) == 1:
        return next_line("evaluate", "features", **options)
    return None


def has_published_baseline(config: EvaluateConfig) -> bool:
    """Whether `evaluate compare` needs no BASELINE=: Google publishes transcoders of the model; the hub may be asked."""
    from huggingface_hub import constants  # takes half a second

    from evaluate.baselines import repo_of

    path = config.run_directory / CONFIG
    model = json.loads(path.read_text()).get("model", config.model) if path.exists() else config.model
    return repo_of(model) is not None and not constants.HF_HUB_OFFLINE


def _common(folders: Iterable[Path]) -> Path:
    """The folder that holds all of them, or the only one."""
    return Path(os.path.commonpath([*folders]))


def with_names(words: Sequence[str]) -> list[str]:
    """The command line with the model and the layer of its store, which name the default run, where it names none."""
    return [*words] if values_of("--run", words) else with_names_of_store(words)


def main() -> None:
    run_command("evaluate", COMMANDS, expand=with_names, say=written, check=check_places, brief=brief, then=then)


if __name__ == "__main__":
    main()
