# Every real template at hand against transformers, the original libraries' ids, real transcripts, and many generated
# messages each. Needs the tokenizers and templates beside the repository; skips, with the reason, where they are
# absent, and the templates of the package index where that cannot be reached.
.PHONY: test-templates docs-templates templates-from-index test-mutations
TEMPLATE_TESTS := test_templates_at_hand test_formats test_transformers_oracle test_reference_ids \
  test_reference_renderings test_proof_cache test_templates_of_index test_disorder

test-templates: $(VENV)/wheel $(VENV)/test-tools
	@TOKENTRUE_ALL_TEMPLATES=1 TOKENTRUE_EXAMPLES=200 TOKENTRUE_CONVERSATIONS=1000 \
	  $(PY) -m pytest -q -n $(WORKERS) --dist worksteal --timeout 1200 --hypothesis-profile exploring \
	  $(TEMPLATE_TESTS:%=tests/rendering/%.py) tests/sessions/test_transcripts.py \
	  tests/testing/test_check_renderer.py

# Seeded faults in close, separator, junction, arguments, evidence and mask: each must be caught by a test.
test-mutations: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) scripts/mutation_check.py

docs-templates: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) scripts/certify_templates.py

# Every template of llama.cpp and TRL, downloaded from the package index (77 MB, kept as 1 MB in build/): writes
# docs/more_templates.md.
templates-from-index: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) scripts/certify_templates.py --from-index
