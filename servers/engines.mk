# Suites against real engines, each in a venv of its own under .engines. The fixtures start the servers on free
# loopback ports and stop them, also on failure and on Ctrl-C; should pytest be killed, the servers end with it.
# Included by the Makefile, which makes $(VENV).
# The embedded model's numbers are the same bit for bit only where its BLAS adds in the same order, so with as many
# threads here as in the worker.
ONE_THREAD = OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

ENGINE_SUITES := vllm dynamo dynamo-vllm

.PHONY: engines test-dynamo test-vllm test-dynamo-vllm test-engines docs-engines

# The venvs alone, of the engines that .ci/run starts.
engines: $(VENV)/wheel
	@$(PY) -m servers.dynamo install
	@$(PY) -m servers.vllm install

test-dynamo: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) -m servers.dynamo install
	@$(ONE_THREAD) $(PY) -m pytest -q -m dynamo tests/dynamo

test-vllm: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) -m servers.vllm install
	@$(ONE_THREAD) $(PY) -m pytest -q -m vllm tests/vllm

test-dynamo-vllm: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) -m servers.dynamo_vllm install
	@$(ONE_THREAD) $(PY) -m pytest -q -m dynamo_vllm tests/dynamo_vllm

# All of them, one after another; the last line adds them up. What one leaves to the next is its venv, and the reports
# of check_engine under build. `make clean` removes both.
test-engines: $(VENV)/wheel $(VENV)/test-tools
	@mkdir -p build
	@for each in $(ENGINE_SUITES); do \
	  echo "test-$$each (log in build/test-$$each.log)"; \
	  $(MAKE) --no-print-directory test-$$each > build/test-$$each.log 2>&1 || tail -40 build/test-$$each.log; \
	  tail -1 build/test-$$each.log; \
	done
	@$(PY) scripts/sum_tests.py $(ENGINE_SUITES:%=build/test-%.log)

# docs/engines.md: the conformance suite alone, on every engine.
docs-engines: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) -m servers.vllm install
	@$(PY) -m servers.dynamo install
	@$(PY) -m servers.dynamo_vllm install
	@$(ONE_THREAD) $(PY) -m pytest -q -m vllm tests/vllm/test_check_engine.py
	@$(ONE_THREAD) $(PY) -m pytest -q -m dynamo tests/dynamo/test_check_engine.py
	@$(ONE_THREAD) $(PY) -m pytest -q -m dynamo_vllm tests/dynamo_vllm/test_check_engine.py
	@$(PY) scripts/engines_table.py
