"""Write what `tokentrue doctor` prints about real servers, which this script starts, into docs/doctor.md.

python scripts/doctor_page.py

Needs what `servers.vllm` and `servers.dynamo` install, and the recorded SGLang.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from servers.dynamo.install import ensure_dynamo  # noqa: E402
from servers.dynamo.server import EMBEDDED, DynamoServer  # noqa: E402
from servers.sglang_replay import SglangReplay  # noqa: E402
from servers.vllm.install import ensure_vllm  # noqa: E402
from servers.vllm.server import VllmServer  # noqa: E402

from tokentrue.engines.embedded.engine import MODEL_FOLDER  # noqa: E402

PAGE = ROOT / "docs" / "doctor.md"
BEHIND = "<!-- printed by scripts/doctor_page.py -->\n"


def main() -> int:
    """Start each server, ask the doctor, write the page."""
    work = Path(tempfile.mkdtemp(prefix="doctor"))
    head, _, _ = PAGE.read_text().partition(BEHIND)
    parts = [head + BEHIND]
    with VllmServer(ensure_vllm(), MODEL_FOLDER, work / "on", settings={"VLLM_SERVER_DEV_MODE": "1"}) as vllm:
        parts.append(_part("vLLM 0.32.0, everything switched on", vllm.url))
    bare = frozenset({"--enable-scale-out", "--enable-prompt-tokens-details"})
    with VllmServer(ensure_vllm(), MODEL_FOLDER, work / "bare", left_out=bare) as vllm:
        parts.append(_part("vLLM 0.32.0 as `vllm serve` starts it", vllm.url))
    with DynamoServer(ensure_dynamo(), work / "dynamo") as dynamo:
        working = dynamo.start_frontend()
        settings = {"DYN_DISABLE_FRONTEND_NVEXT": "1", "DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE": "0"}
        deaf = dynamo.start_frontend("deaf", settings)
        dynamo.start_worker(EMBEDDED)
        dynamo.wait_ready()
        parts.append(_part("NVIDIA Dynamo 1.6.1, with the embedded model behind it", working.url))
        parts.append(_part("The same with DYN_DISABLE_FRONTEND_NVEXT=1, without the token route", deaf.url))
    note = (
        "Not a running SGLang: what it tells of itself and the shape of its replies are a recording of 0.5.23,\n"
        "and the embedded model samples (`servers/sglang_replay.py`).\n"
    )
    with SglangReplay() as sglang:
        parts.append(_part("SGLang 0.5.23, replayed", sglang.url, note))
    PAGE.write_text("\n".join(parts))
    return 0


def _part(title: str, url: str, note: str = "") -> str:
    command = [sys.executable, "-m", "tokentrue", "doctor", url, "--tokenizer", "embedded"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    printed = (done.stdout + done.stderr).replace(url, "http://127.0.0.1:8000")
    verdict, _, config = printed.partition("\n# ClientConfig")
    said, _, failure = config.partition("\ntokentrue: ")
    closing = f"\ntokentrue: {failure.strip()}" if failure else ""
    text = f"{verdict.strip()}\n\n# ClientConfig{said.rstrip()}{closing}"
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return f"## {title}\n\n{note + chr(10) if note else ''}```text\n{text}\n```\n\nExit code {done.returncode}.\n"


if __name__ == "__main__":
    sys.exit(main())
