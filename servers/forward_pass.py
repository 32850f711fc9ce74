"""A forward pass by transformers in the Python of an engine's venv: the independent oracle of log-probabilities.

Nothing of Tokentrue computes here, so what it says about ids can contradict the embedded engine as well as a
server. torch and transformers come with vLLM's venv and are no dependency of the product or of its tests; so the
model lives in a process of its own, which reads one question per line and answers with one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from servers.processes import REPOSITORY, ServerError, clean_environment

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class ForwardPass:
    """Scores completions; a context manager that ends its process.

    Args:
        python: The Python of a venv with torch and transformers.
        model_folder: A Hugging Face folder.
        log_path: Where what the process says on stderr goes.
        dtype: "float32" as the engines compute, or "float64" to see who is off.
    """

    def __init__(self, python: Path, model_folder: Path, log_path: Path, dtype: str = "float32") -> None:
        self._command = [str(python), "-m", "servers.forward_pass", str(model_folder.resolve()), dtype]
        self._log_path = log_path
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> ForwardPass:
        """Start it; the model is loaded by the first question."""
        with self._log_path.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                env=clean_environment({**_SETTINGS, "PYTHONPATH": str(REPOSITORY)}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        child, self._child = self._child, None
        if child is not None:
            child.communicate()  # the end of its questions is the end of the process

    def __call__(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Log-softmax at temperature 1 of each completion id.

        Raises:
            ServerError: The process ended instead of answering.
        """
        child = self._child
        if child is None or child.stdin is None or child.stdout is None:
            raise ServerError("the forward pass is not started; use it in a `with` statement")
        child.stdin.write(json.dumps([list(prompt_ids), list(completion_ids)]) + "\n")
        child.stdin.flush()
        answer = child.stdout.readline()
        if not answer:
            raise ServerError(f"the forward pass ended; {self._log_path} has its last words")
        logprobs: list[float] = json.loads(answer)
        return logprobs


def _answer_all(model_folder: str, dtype: str) -> None:
    """Runs in the engine's venv."""
    import torch  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=getattr(torch, dtype)).eval()
    for line in sys.stdin:
        prompt_ids, completion_ids = json.loads(line)
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids + completion_ids[:-1]])).logits[0, len(prompt_ids) - 1 :]
            chosen = torch.tensor(completion_ids)[:, None]
            print(json.dumps(torch.log_softmax(logits, -1).gather(1, chosen)[:, 0].tolist()), flush=True)


if __name__ == "__main__":
    _answer_all(sys.argv[1], sys.argv[2])
