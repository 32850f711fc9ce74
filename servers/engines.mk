# Suites against real engines, each in a venv of its own under .engines. The fixtures start the servers on free
# loopback ports and stop them, also on failure and on Ctrl-C; should pytest be killed, the servers end with it.
VENV ?= .venv
PY ?= $(VENV)/bin/python

.PHONY: test-dynamo test-vllm

test-dynamo:
	@$(PY) -m servers.dynamo install
	@$(PY) -m pytest -q -m dynamo tests/dynamo

test-vllm:
	@$(PY) -m servers.vllm install
	@$(PY) -m pytest -q -m vllm tests/vllm
