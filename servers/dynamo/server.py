"""One Dynamo on loopback: frontends, and workers that they find through a fresh discovery folder.

Every plane listens on 127.0.0.1 only, ports are chosen at start, and each process has its log in the work folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

from servers.dynamo.request_log import LoggedRequest, read_requests
from servers.processes import (
    EMBEDDED_MODEL,
    REPOSITORY,
    ServerError,
    ServerProcess,
    free_ports,
    get_json,
    wait_until,
)

READY_TIMEOUT_S = 60.0
_SIDECAR_MARKER = "SIDECAR-SKIP-TOKENIZE"


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """A worker program, the name its model is served under, and what is always on its command line.

    `settings` is environment on top of the common one.
    """

    module: str
    model_name: str
    model_folder: str
    arguments: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)

    def command(self, folder: Path, log_path: Path) -> tuple[str, ...]:
        """Module and command line of a worker that serves `folder` and writes what it receives to `log_path`."""
        own = ("--model-name", self.model_name, "--request-log", str(log_path), "--model-folder", str(folder))
        return (self.module, *own, *self.arguments)


EMBEDDED = WorkerKind("servers.dynamo.embedded_worker", "tokentrue-embedded", str(EMBEDDED_MODEL))
PARSED = WorkerKind(
    "servers.dynamo.embedded_worker",
    "tokentrue-parsed",
    str(EMBEDDED_MODEL),
    ("--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"),
)
"""The same model; the frontend reads calls and reasoning in its answers."""

FAULTS = WorkerKind("servers.dynamo.fault_worker", "tokentrue-faults", "tokentrue-faults.model")
"""Its folder is written by the worker, inside the work folder."""


@dataclass(slots=True)
class Frontend:
    """A running frontend."""

    url: str
    process: ServerProcess

    def token_in_count(self) -> int:
        """How many requests it says, in its log, that it took the client's ids for."""
        return self.process.log_path.read_text(errors="replace").count(_SIDECAR_MARKER)


@dataclass(slots=True)
class Worker:
    """A running worker."""

    kind: WorkerKind
    model_folder: Path
    log_path: Path
    arguments: tuple[str, ...]
    process: ServerProcess

    def requests(self) -> list[LoggedRequest]:
        """Everything it has received, in order."""
        return read_requests(self.log_path)


@dataclass(slots=True)
class DynamoServer:
    """Frontends and workers which share one discovery folder; a context manager that stops them all.

    Args:
        python: The Python of the venv with Dynamo in it.
        work_folder: A new one, or an earlier run's, which is emptied; logs, discovery and request logs live here.
        tethered: End everything when this process ends.
    """

    python: Path
    work_folder: Path
    tethered: bool = True
    frontends: list[Frontend] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)

    def __enter__(self) -> DynamoServer:
        """Make the work folder new; nothing is started yet.

        Raises:
            ServerError: It holds something else than an earlier run, which is not ours to delete.
        """
        discovery = self.work_folder / "discovery"
        if self.work_folder.exists() and any(self.work_folder.iterdir()) and not discovery.is_dir():
            raise ServerError(f"{self.work_folder} is not empty, and no earlier run of Dynamo's; choose another")
        shutil.rmtree(self.work_folder, ignore_errors=True)  # leases of an earlier run would live on for 10 s
        for folder in (self.work_folder / "home", discovery):
            folder.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything that was started, workers first."""
        for process in self.processes():
            process.stop()

    def processes(self) -> list[ServerProcess]:
        """Everything that was started, in the order to stop it."""
        return [each.process for each in self.workers] + [each.process for each in self.frontends]

    def start_frontend(
        self, name: str = "frontend", settings: Mapping[str, str] | None = None, port: int | None = None
    ) -> Frontend:
        """Start a frontend; it is useful once `wait_ready` has returned.

        Args:
            name: Of its log file.
            settings: Environment on top of the common one.
            port: A free one is chosen when it is not given.
        """
        chosen = port if port is not None else free_ports(1)[0]
        process = self._start(
            ["dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(chosen)],
            {"DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE": "1", **(settings or {})},
            name,
        )
        self.frontends.append(Frontend(f"http://127.0.0.1:{chosen}", process))
        return self.frontends[-1]

    def start_worker(self, kind: WorkerKind, *arguments: str) -> Worker:
        """Start a worker of one kind; `arguments` go to its command line, behind those of the kind."""
        name = kind.model_name
        log_path = self.work_folder / f"{name}.requests.jsonl"
        folder = self.work_folder / kind.model_folder
        full = (*kind.command(folder, log_path), *arguments)
        self.workers.append(Worker(kind, folder, log_path, full, self._start(full, kind.settings, name)))
        return self.workers[-1]

    def restart_worker(self, worker: Worker) -> None:
        """Start it again with the arguments it had; its request log goes on."""
        worker.process = self._start(worker.arguments, worker.kind.settings, worker.kind.model_name)

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every frontend knows every worker's model.

        `/health` answers 200 without a single worker; only a model's own readiness tells.

        Raises:
            ServerError: A process ended, or it took too long; with the ends of the logs.
        """
        processes = self.processes()
        deadline = time.monotonic() + timeout_s
        for frontend in self.frontends:
            for worker in self.workers:
                url = f"{frontend.url}/v1/models/{worker.kind.model_name}/ready"
                wait_until(partial(_is_ready, url), processes, deadline - time.monotonic())

    def _start(self, module: Sequence[str], extra: Mapping[str, str], name: str) -> ServerProcess:
        return ServerProcess(
            [str(self.python), "-m", *module],
            {**self._settings(), **extra},
            self.work_folder / f"{name}.log",
            tethered=self.tethered,
        )

    def _settings(self) -> dict[str, str]:
        return {
            "HOME": str(self.work_folder / "home"),  # it caches model metadata in ~/.cache/dynamo
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
            "DYN_LOG": "info",
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(self.work_folder / "discovery"),
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_SELF_HOST_METADATA": "0",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
            "DYN_EVENT_PLANE_HOST": "127.0.0.1",
            "DYN_SYSTEM_HOST": "127.0.0.1",
        }


def _is_ready(url: str) -> bool:
    answer = get_json(url)
    return isinstance(answer, dict) and answer.get("ready") is True
