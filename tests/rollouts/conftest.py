"""The renderer of the shipped model: its template drops old reasoning and has tool calls, as Qwen3's does."""

from __future__ import annotations

import pytest

from tokentrue import Renderer, load_renderer
from tokentrue.engines.embedded.engine import MODEL_FOLDER


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    return load_renderer(MODEL_FOLDER)
