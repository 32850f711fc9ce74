# Every real template at hand, and many generated messages each: about ten minutes on two cores. Needs the
# tokenizers and templates beside the repository; skips, with the reason, where they are absent.
.PHONY: test-templates docs-templates
TEMPLATE_TESTS := tests/rendering/test_formats.py tests/rendering/test_templates_at_hand.py \
	tests/rendering/test_proof_cache.py

test-templates: $(VENV)/wheel $(VENV)/test-tools
	@TOKENTRUE_ALL_TEMPLATES=1 TOKENTRUE_EXAMPLES=200 $(PY) -m pytest -q --timeout 1200 $(TEMPLATE_TESTS)

docs-templates: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) scripts/certify_templates.py
