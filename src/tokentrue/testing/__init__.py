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
from tokentrue.testing.renderer_checks import check_renderer
from tokentrue.testing.renderer_report import ConformanceError, RendererCheck, RendererReport

__all__ = [
    "CHECKS",
    "BrokenPromiseError",
    "CheckRow",
    "ConformanceError",
    "EngineReport",
    "Finding",
    "Law",
    "Oracle",
    "Outcome",
    "RendererCheck",
    "RendererReport",
    "ServerFacts",
    "check_engine",
    "check_renderer",
]
