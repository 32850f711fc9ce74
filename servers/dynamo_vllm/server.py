"""The worker that is a real vLLM, for `DynamoServer.start_worker`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from servers.dynamo.server import WorkerKind
from servers.processes import EMBEDDED_MODEL
from servers.vllm.server import BLOCK_TOKENS, CONTEXT_LIMIT, CPU_SETTINGS

READY_TIMEOUT_S = 240.0
_NO_BROKER = {
    # A worker's own event publisher listens on every interface, whatever host it is given. Told of a broker it
    # connects instead of listening; nobody is at that port, so load metrics, which no test needs, go nowhere.
    "DYN_ZMQ_BROKER_URL": "xsub=tcp://127.0.0.1:9 , xpub=tcp://127.0.0.1:9",
}


@dataclass(frozen=True, slots=True)
class VllmWorkerKind(WorkerKind):
    """Dynamo's vLLM worker; it keeps no log of what it receives."""

    settings: dict[str, str] = field(default_factory=lambda: {**CPU_SETTINGS, **_NO_BROKER})

    def command(self, folder: Path, log_path: Path) -> tuple[str, ...]:
        """Module and command line; `log_path` stays unused."""
        return (
            self.module,
            *("--model", str(folder), "--served-model-name", self.model_name, "--dtype", "float32", "--seed", "0"),
            *("--max-model-len", str(CONTEXT_LIMIT), "--block-size", str(BLOCK_TOKENS), "--enforce-eager"),
            *("--max-num-seqs", "64", "--kv-cache-memory-bytes", "64M", "--enable-prefix-caching"),
            *self.arguments,
        )


DYNAMO_VLLM = VllmWorkerKind("dynamo.vllm", "tokentrue-embedded", str(EMBEDDED_MODEL))
