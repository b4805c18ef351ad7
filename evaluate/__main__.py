"""`python -m evaluate COMMAND`: parses the options, calls the command, prints the paths of what it wrote."""

from importlib import import_module
from pathlib import Path

from evaluate.config import (
    AnalyzeConfig,
    BrowseConfig,
    CompareConfig,
    CompareLayersConfig,
    EvaluateConfig,
    ExportConfig,
    FeaturesConfig,
    ImportanceConfig,
    InterveneConfig,
)
from evaluate.judge_config import JudgeConfig, JudgeExportConfig, JudgeScoreConfig
from store.command import command, parse_subcommand

COMMANDS: dict[str, tuple[type, str, str]] = {
    "metrics": (EvaluateConfig, "evaluate.compare", "evaluate_run"),
    "compare": (CompareConfig, "evaluate.compare", "compare_runs"),
    "features": (FeaturesConfig, "evaluate.samples", "collect_samples"),
    "analyze": (AnalyzeConfig, "evaluate.analyze", "analyze"),
    "compare-layers": (CompareLayersConfig, "evaluate.layer_features", "compare_layers"),
    "browse": (BrowseConfig, "evaluate.browse", "browse"),
    "browse-export": (ExportConfig, "evaluate.browse_export", "export"),
    "intervene": (InterveneConfig, "evaluate.intervene", "intervene"),
    "importance": (ImportanceConfig, "evaluate.intervene", "importance"),
    "judge-export": (JudgeExportConfig, "evaluate.judge_export", "export_questions"),
    "judge": (JudgeConfig, "evaluate.judge", "judge"),
    "judge-score": (JudgeScoreConfig, "evaluate.judge_score", "score_answers"),
}
"""By name: its options, and the function that does it (imported only when it is asked for)."""
SHOWN = (
    "index.html",
    "report.html",
    "summary.txt",
    "report.md",
    "metrics.json",
    "comparison.json",
    "features.parquet",
    "collection_summary.json",
    "items.jsonl",
    "scores.json",
)


def main() -> None:
    with command("evaluate"):
        name, config = parse_subcommand({name: kind for name, (kind, *_) in COMMANDS.items()}, "python -m evaluate")
        _, module, function = COMMANDS[name]
        folder: Path | None = getattr(import_module(module), function)(config)
        print("\n".join(str(folder / file) for file in SHOWN if folder and (folder / file).exists()))


if __name__ == "__main__":
    main()
