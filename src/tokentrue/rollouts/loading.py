"""Environments by name: `calculator`, `shop`, `package.module:Class` or `path/to/file.py:Class`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tokentrue.errors import ConfigError
from tokentrue.rollouts.environment import Environment

SHIPPED = {
    "calculator": "tokentrue.rollouts.shipped.environments:CalculatorEnv",
    "shop": "tokentrue.rollouts.shipped.environments:ShopEnv",
}
"""The environments that come with the package."""


def load_environment(spec: str) -> Environment[Any, Any]:
    """Find an environment's class and make one, without arguments.

    Raises:
        ConfigError: Nothing of that name is there; says what was looked for, and where.
    """
    place, colon, class_name = SHIPPED.get(spec, spec).rpartition(":")
    if not colon or not place or not class_name.isidentifier():
        raise ConfigError(
            f"{spec!r} names no environment: write {', '.join(SHIPPED)}, module:Class or path/to/file.py:Class"
        )
    module = _module_from_file(Path(place)) if place.endswith(".py") else _module(place)
    return _make(module, class_name, place)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
            raise ConfigError(
                f"there is no module {name!r} on the Python path; a file is written with its path, ending in .py"
            ) from exc
        raise ConfigError(f"module {name!r} cannot be imported: {exc}") from exc
    except Exception as exc:
        raise ConfigError(f"module {name!r} cannot be imported: {type(exc).__name__}: {exc}") from exc


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r} (looked in {path.absolute().parent})")
    # Two files of one name must not be taken for each other, and a dataclass needs its module in sys.modules.
    name = f"tokentrue_env_{path.stem}_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{str(path)!r} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        del sys.modules[name]
        raise ConfigError(f"{str(path)!r} cannot be imported: {type(exc).__name__}: {exc}") from exc
    return module


def _make(module: ModuleType, class_name: str, place: str) -> Environment[Any, Any]:
    found = vars(module).get(class_name)
    if found is None:
        there = sorted(
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, Environment) and not inspect.isabstract(value)
        )
        offer = f"its environments are: {', '.join(there)}" if there else "it defines no environment"
        raise ConfigError(f"{place!r} has no {class_name!r}; {offer}")
    if not inspect.isclass(found) or not issubclass(found, Environment):
        raise ConfigError(f"{place}:{class_name} is no subclass of tokentrue's Environment, but {found!r}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f"{place}:{class_name} cannot be used: it does not define {missing}")
    try:
        return found()
    except Exception as exc:
        raise ConfigError(
            f"{place}:{class_name} cannot be made without arguments: {type(exc).__name__}: {exc}"
        ) from exc
