"""`python -m evaluate COMMAND`: parses the options, calls the command, prints the paths of what it wrote."""

from importlib import import_module
from pathlib import Path

from evaluate.browse.config import BrowseConfig, ExportConfig
from evaluate.compare.config import CompareConfig
from evaluate.config import EvaluateConfig
from evaluate.features.config import AnalyzeConfig, CompareLayersConfig, FeaturesConfig
from evaluate.judge.config import JudgeConfig, JudgeExportConfig, JudgeScoreConfig
from evaluate.model.config import ImportanceConfig, InterveneConfig
from store.cli import one_line_errors, parse_subcommand
from store.layout import COLLECTION_SUMMARY, COMPARISON, FEATURES, ITEMS, METRICS, REPORT, REPORT_MARKDOWN, SCORES, SUMMARY

COMMANDS: dict[str, tuple[type, str, str]] = {
    "metrics": (EvaluateConfig, "evaluate.compare.commands", "evaluate_run"),
    "compare": (CompareConfig, "evaluate.compare.layers", "compare"),
    "features": (FeaturesConfig, "evaluate.features.samples", "collect_samples"),
    "analyze": (AnalyzeConfig, "evaluate.features.analyze", "analyze"),
    "compare-layers": (CompareLayersConfig, "evaluate.features.partners", "match_features"),
    "browse": (BrowseConfig, "evaluate.browse.server", "browse"),
    "browse-export": (ExportConfig, "evaluate.browse.export", "export"),
    "intervene": (InterveneConfig, "evaluate.model.intervene", "intervene"),
    "importance": (ImportanceConfig, "evaluate.model.importance", "importance"),
    "judge-export": (JudgeExportConfig, "evaluate.judge.questions", "export_questions"),
    "judge": (JudgeConfig, "evaluate.judge.ask", "judge"),
    "judge-score": (JudgeScoreConfig, "evaluate.judge.score", "score_answers"),
}
"""By name: its options, and the function that does it (imported only when it is asked for)."""
SHOWN = (
    "index.html",
    REPORT,
    SUMMARY,
    REPORT_MARKDOWN,
    METRICS,
    COMPARISON,
    FEATURES,
    COLLECTION_SUMMARY,
    ITEMS,
    SCORES,
)


def main() -> None:
    with one_line_errors("evaluate"):
        name, config = parse_subcommand({name: kind for name, (kind, *_) in COMMANDS.items()}, "python -m evaluate")
        _, module, function = COMMANDS[name]
        folder: Path | None = getattr(import_module(module), function)(config)
        print("\n".join(str(folder / file) for file in SHOWN if folder and (folder / file).exists()))


if __name__ == "__main__":
    main()
