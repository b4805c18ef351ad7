"""A store or a run that is not there is noticed before the libraries of language models are imported."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.child import ROOT

CODE = (
    "import sys, evaluate.__main__ as room\n"
    "command, *runs = sys.argv[1:]\n"
    "for run in runs:\n"
    "    sys.argv[1:] = [command, '--run', run]\n"
    "    try:\n        room.main()\n    except SystemExit as end:\n        print(end.code)\n"
    "    print([name for name in ('transformers', 'transformer_lens', 'datasets') if name in sys.modules])"
)


@pytest.mark.parametrize(
    "command", ["compare", *(pytest.param(each, marks=pytest.mark.slow) for each in ("features", "importance", "metrics"))]
)
def test_what_is_gone_is_noticed_before_the_slow_imports(trained_once, tmp_path, command):
    """One process is given both lines: a library that the first one imports would stay."""
    gone, run = tmp_path / "gone", tmp_path / "run"
    shutil.copytree(trained_once / "run", run)
    written = json.loads((run / "origin.json").read_text())
    (run / "origin.json").write_text(json.dumps(written | {"store": written["store"] | dict(given="x", absolute="/x")}))
    words = [sys.executable, "-c", CODE, command, str(gone), str(run)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1", "[]"] * 2, done.stderr
    of_run, of_store = done.stderr.splitlines()
    assert f"{gone} holds no transcoder" in of_run
    assert "which is gone: x holds no store, /x holds no store" in of_store
