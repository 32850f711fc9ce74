"""Environments by name: every way that works, and a clear line for every way that does not."""

from __future__ import annotations

import sys

import pytest

from tokentrue.errors import ConfigError
from tokentrue.rollouts.loading import load_environment
from tokentrue.rollouts.shipped.environments import CalculatorEnv, ShopEnv

GOOD = """
from __future__ import annotations
from dataclasses import dataclass
from tokentrue.rollouts.environment import EpisodeState, SingleTurnEnv

@dataclass(slots=True)
class State(EpisodeState[int]):
    more: int = 1

class Mine(SingleTurnEnv[int, State]):
    def make_task(self, index, seed):
        return index
    def setup(self, task, seed):
        return State(task, seed, [{"role": "user", "content": "hi"}])

class Half(SingleTurnEnv[int, State]):
    def make_task(self, index, seed):
        return index

class Needy(Mine):
    def __init__(self, what):
        self.what = what

text = "no class"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_env.py").write_text(GOOD)
    (tmp_path / "broken_syntax.py").write_text("def (")
    (tmp_path / "wants_more.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith(("tokentrue_env_", "my_env"))]:
        del sys.modules[name]


def test_the_shipped_names():
    """No import path has to be remembered."""
    assert isinstance(load_environment("calculator"), CalculatorEnv)
    assert isinstance(load_environment("shop"), ShopEnv)


def test_a_module_and_a_file(folder):
    """Both spellings give the class, and the file need not be on the Python path."""
    for spec in ("my_env:Mine", "my_env.py:Mine", f"{folder}/my_env.py:Mine"):
        environment = load_environment(spec)
        assert type(environment).__name__ == "Mine"
        assert environment.name.endswith(":Mine")
        assert environment.setup(1, 2).more == 1


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("calculater", "'calculater' names no environment: write calculator, shop, module:Class"),
        ("", "names no environment"),
        (":Mine", "names no environment"),
        ("my_env:", "names no environment"),
        ("no_such_module:Mine", "no module 'no_such_module' on the Python path"),
        ("my_env.sub:Mine", "my_env.sub"),
        ("nowhere/my_env.py:Mine", "there is no file 'nowhere/my_env.py' (looked in /"),
        ("my_env.py:Yours", "'my_env.py' has no 'Yours'; its environments are: Mine, Needy"),
        ("json:Mine", "'json' has no 'Mine'; it defines no environment"),
        ("my_env.py:text", "no subclass of tokentrue's Environment"),
        ("my_env.py:State", "no subclass of tokentrue's Environment"),
        ("my_env.py:Half", "does not define setup"),
        ("my_env.py:Needy", "cannot be made without arguments: TypeError"),
        ("broken_syntax.py:Mine", "'broken_syntax.py' cannot be imported: SyntaxError"),
        ("broken_syntax:Mine", "'broken_syntax' cannot be imported: SyntaxError"),
        ("wants_more:Mine", "module 'wants_more' cannot be imported: No module named 'not_installed_anywhere'"),
        ("wants_more.py:Mine", "No module named 'not_installed_anywhere'"),
    ],
)
def test_every_mistake_names_what_was_looked_for_and_where(folder, spec, told):
    """One line, the caller's own spelling in it."""
    with pytest.raises(ConfigError) as caught:
        load_environment(spec)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
