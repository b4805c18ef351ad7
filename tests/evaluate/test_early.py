"""A store or a run that is not there is noticed before the libraries of language models are imported."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.child import ROOT

CODE = (
    "import sys, evaluate.__main__ as room\n"
    "try:\n    room.main()\nexcept SystemExit as end:\n    print(end.code)\n"
    "print([name for name in ('transformers', 'transformer_lens', 'datasets') if name in sys.modules])"
)


@pytest.mark.parametrize(
    "command", ["compare", *(pytest.param(each, marks=pytest.mark.slow) for each in ("features", "importance", "metrics"))]
)
@pytest.mark.parametrize("gone", ["store", "run"])
def test_what_is_gone_is_noticed_before_the_slow_imports(trained_once, tmp_path, command, gone):
    run = tmp_path / "run"
    message = f"{run} holds no transcoder"
    if gone == "store":
        shutil.copytree(trained_once / "run", run)
        written = json.loads((run / "origin.json").read_text())
        (run / "origin.json").write_text(json.dumps(written | {"store": written["store"] | dict(given="x", absolute="/x")}))
        message = "which is gone: x holds no store, /x holds no store"
    words = [sys.executable, "-c", CODE, command, "--run", str(run)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1", "[]"], done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
