"""One vLLM server on loopback; a context manager that stops it."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from servers.processes import ServerProcess, free_ports, wait_until

MODEL_NAME = "tokentrue-embedded"
CONTEXT_LIMIT = 2048
BLOCK_TOKENS = 32
"""Tokens of one block of the prefix cache; attention on CPU takes multiples of 32 only."""
READY_TIMEOUT_S = 240.0

CPU_SETTINGS = {
    # The multiprocess executor busy-spins between two processes and starves a client on a small machine.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",  # else the first request with log-probabilities compiles for 15 s
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_SERVER_DEV_MODE": "1",  # the routes that pause it, load weights and reset the prefix cache
    "VLLM_HOST_IP": "127.0.0.1",  # keeps the internal sockets on loopback
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_FLAGS = (
    *("--dtype", "float32", "--seed", "0", "--enforce-eager"),
    *("--max-num-seqs", "64", "--kv-cache-memory-bytes", "64M", "--enable-prefix-caching"),
    "--enable-scale-out",  # without it the token route answers 403
    "--enable-prompt-tokens-details",  # counts of cached tokens in usage
    "--enable-request-id-headers",
)


@dataclass(slots=True)
class VllmServer:
    """A server of one model folder.

    Args:
        python: The Python of the venv with vLLM in it.
        model_folder: A Hugging Face folder with weights, tokenizer and configuration.
        work_folder: Where the log goes.
        tethered: End the server when this process ends.
        flags: Further flags of `vllm serve`.
        left_out: Flags of ours that are not given.
        settings: Further environment variables.
    """

    python: Path
    model_folder: Path
    work_folder: Path
    tethered: bool = True
    port: int | None = None
    flags: tuple[str, ...] = ()
    url: str = ""
    left_out: frozenset[str] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)
    processes: list[ServerProcess] = field(default_factory=list)

    def __enter__(self) -> VllmServer:
        """Start it and wait until it answers.

        Raises:
            ServerError: It ended, or took too long; with the end of its log.
        """
        self.work_folder.mkdir(parents=True, exist_ok=True)
        port = self.port if self.port is not None else free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        command = [str(self.python.with_name("vllm")), "serve", str(self.model_folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL_NAME]
        command += ["--max-model-len", str(CONTEXT_LIMIT), "--block-size", str(BLOCK_TOKENS)]
        command += [*(flag for flag in _FLAGS if flag not in self.left_out), *self.flags]
        self.processes.append(
            ServerProcess(
                command,
                {**CPU_SETTINGS, **self.settings},
                self.work_folder / "vllm.log",
                tethered=self.tethered,
            )
        )
        try:
            wait_until(self._is_ready, self.processes, READY_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def stop(self) -> None:
        """Stop it; idempotent."""
        for process in self.processes:
            process.stop(grace_s=10.0)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False
