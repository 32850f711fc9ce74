# Ours and the renderers package, over 300 conversations per family: about ten minutes on two cores. Needs the
# tokenizers beside the repository; skips, with the reason, where they are absent. `make test` does 20 of each.
.PHONY: test-renderers docs-renderers

test-renderers: $(VENV)/wheel $(VENV)/test-tools
	@TOKENTRUE_CONVERSATIONS=300 TOKENTRUE_EXAMPLES=60 $(PY) -m pytest -q --timeout 1200 \
	  tests/rendering/test_renderers_oracle.py tests/rendering/test_plugged.py tests/testing/test_check_renderer.py

docs-renderers: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) scripts/compare_renderers.py
