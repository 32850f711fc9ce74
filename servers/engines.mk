# Suites against real engines, each in a venv of its own under .engines. The fixtures start the servers on free
# loopback ports and stop them, also on failure and on Ctrl-C; should pytest be killed, the servers end with it.
# Included by the Makefile, which makes $(VENV).
# The embedded model's numbers are the same bit for bit only where its BLAS adds in the same order, so with as many
# threads here as in the worker.
ONE_THREAD = OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: test-dynamo test-vllm test-dynamo-vllm

test-dynamo: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) -m servers.dynamo install
	@$(ONE_THREAD) $(PY) -m pytest -q -m dynamo tests/dynamo

test-vllm: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) -m servers.vllm install
	@$(ONE_THREAD) $(PY) -m pytest -q -m vllm tests/vllm

test-dynamo-vllm: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) -m servers.dynamo_vllm install
	@$(ONE_THREAD) $(PY) -m pytest -q -m dynamo_vllm tests/dynamo_vllm
