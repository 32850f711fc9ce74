"""The public surface is deliberate, sorted, and light to import."""

from __future__ import annotations

import subprocess
import sys

import tokentrue


def test_all_is_sorted_and_is_the_namespace() -> None:
    public = [name for name in vars(tokentrue) if not name.startswith("_")]
    modules = [name for name in public if type(getattr(tokentrue, name)).__name__ == "module"]
    assert tokentrue.__all__ == sorted(tokentrue.__all__)
    assert sorted(set(public) - set(modules)) == sorted(tokentrue.__all__)


def test_the_names_that_the_design_promises_exist() -> None:
    promised = {"RendererClient", "Session", "load_renderer", "SingleTurnEnv", "MultiTurnEnv", "ToolEnv"}
    assert promised | {"run_rollouts", "TurnTokens", "Response"} <= set(tokentrue.__all__)


def test_importing_the_package_imports_no_framework() -> None:
    code = (
        "import sys, tokentrue; "
        "bad = {'torch', 'transformers', 'pyarrow', 'rich', 'click'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
