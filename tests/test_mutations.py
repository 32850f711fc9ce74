"""The list of seeded faults is true, and the tool that tries them works; `make test-mutations` tries them all."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "mutation_check.py"


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutation_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutation_check"] = module
    spec.loader.exec_module(module)
    return module


def test_every_seeded_fault_has_its_place_and_its_tests(faults: ModuleType) -> None:
    assert faults.check_list() == []
    names = [fault.name for fault in faults.FAULTS]
    assert len(set(names)) == len(names) >= 12
    told = " ".join(names)
    assert all(word in told for word in ("close", "separator", "junction", "arguments", "mask", "echo"))


def test_seeded_faults_are_caught_and_the_unchanged_sources_are_not(faults: ModuleType) -> None:
    chosen = [fault for fault in faults.FAULTS if fault.name in faults.SHORT]
    assert len(chosen) == len(faults.SHORT)
    assert faults.try_unchanged(chosen) == ""
    assert [faults.try_fault(fault)[0] for fault in chosen] == [True] * len(chosen)


def test_a_fault_that_nothing_notices_is_told(faults: ModuleType) -> None:
    tests = ("tests/sessions/test_trajectories.py::test_counts_that_do_not_add_up_cannot_be_built",)
    harmless = faults.Fault("an empty line", "tokens.py", "import numpy as np\n", "import numpy as np\n\n", tests)
    assert faults.try_fault(harmless)[0] is False
