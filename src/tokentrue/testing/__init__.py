"""Conformance checks and fakes for users' own tests."""

from tokentrue.testing.engine_conformance import CHECKS, check_engine
from tokentrue.testing.engine_report import (
    BrokenPromiseError,
    CheckRow,
    EngineReport,
    Finding,
    Law,
    Outcome,
)
from tokentrue.testing.engine_subject import Oracle, ServerFacts

__all__ = [
    "CHECKS",
    "BrokenPromiseError",
    "CheckRow",
    "EngineReport",
    "Finding",
    "Law",
    "Oracle",
    "Outcome",
    "ServerFacts",
    "check_engine",
]
