"""The program ``hft-surgery``: all choices of tensors and all surgery are made there, never a second time in Python."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from .errors import HFTError

VARIABLE = "HFT_SURGERY_BINARY"
"""The environment variable that names the program where it is not installed with the package."""


def version() -> Optional[str]:
    """The version of the installed package; None where the package is imported from a source tree."""
    try:
        return importlib.metadata.version("hft-surgery")
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def find() -> str:
    """The path of the program: ``$HFT_SURGERY_BINARY``, the scripts of this Python, or ``PATH``.

    Raises:
        HFTError: it is nowhere, or is of another version than the package.
    """
    name = "hft-surgery.exe" if os.name == "nt" else "hft-surgery"
    scheme = {"nt": "nt_user", "posix": "posix_user"}[os.name]
    directories = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent), sysconfig.get_path("scripts", scheme)]
    places = [os.environ.get(VARIABLE), *(os.path.join(directory, name) for directory in directories), shutil.which(name)]
    found = next((place for place in places if place and os.access(place, os.X_OK) and os.path.isfile(place)), None)
    if found is None:
        raise HFTError("the program hft-surgery was not found", f"pip install hft-surgery, or set {VARIABLE} to its path")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.split()
    if version() is not None and said[-1:] != [version()]:
        raise HFTError(f"{found}: got version {' '.join(said[-1:])}, expected {version()}, that of the Python package")
    return found


def run(arguments: Sequence[str], *, accept: Sequence[int] = (0,)) -> str:
    """Runs a command and gives its stdout. Its warnings become warnings of Python.

    Raises:
        HFTError: an exit code that is not in ``accept``, with the command's own message and hint.
    """
    finished = subprocess.run([find(), *arguments], capture_output=True, text=True, encoding="utf-8", check=False)
    parts = _messages(finished.stderr)
    if finished.returncode not in accept:
        errors = parts["error"] or [finished.stderr.strip() or f"hft-surgery ended with {finished.returncode}"]
        raise HFTError("\n".join(errors), "\n".join(parts["hint"]) or None)
    for text in parts["warning"]:
        warnings.warn(text, stacklevel=3)
    return finished.stdout


def _messages(stderr: str) -> dict[str, list[str]]:
    """The messages on stderr by their kind; a line without one belongs to the message before it."""
    kinds: dict[str, list[str]] = {"error": [], "hint": [], "warning": []}
    current: Optional[list[str]] = None
    for line in stderr.splitlines():
        kind, colon, text = line.partition(": ")
        if colon and kind in kinds:
            current = kinds[kind]
            current.append(text)
        elif line.startswith(" ") and current:
            current[-1] += "\n" + line
        else:
            current = None
    return kinds
