# SPDX-License-Identifier: Apache-2.0
"""Compiles the C++ kernel of the native backend, once for each version and kind of CPU.

The kernel needs neither torch's headers nor Python's, so a compiler alone builds it, in seconds. It
is kept in ``$XDG_CACHE_HOME/ns_sparseattn`` (``~/.cache`` by default) and serves every environment
of the user. ``NS_SPARSEATTN_NO_BUILD=1`` forbids to compile; ``CXX`` names another compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("native_kernel.cpp")
_HEADER = Path(__file__).with_name("native_arithmetic.h")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread")
_COMPILERS = ("g++", "clang++", "c++")
_TIMEOUT_S = 600
"""Ten thousand times what the build computes for: a compiler that hangs must not hang a run."""


@dataclass(frozen=True, kw_only=True)
class InstructionSet:
    """What a build of the kernel may use."""

    name: str
    features: frozenset[str]
    """What the CPU must have, in the words of ``/proc/cpuinfo``."""
    flags: tuple[str, ...]
    """What makes a compiler use it."""


INSTRUCTION_SETS = (
    InstructionSet(
        name="avx512_bf16",
        features=frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16", "fma"}),
        flags=("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mfma"),
    ),
    InstructionSet(
        name="avx512", features=frozenset({"avx512f", "fma"}), flags=("-mavx512f", "-mfma")
    ),
    InstructionSet(name="avx2", features=frozenset({"avx2", "fma"}), flags=("-mavx2", "-mfma")),
)
"""From the best to the least."""


class UnavailableError(RuntimeError):
    """The kernel cannot be had here; the message is the sentence for the user."""


def load() -> ctypes.CDLL:
    """Return the kernel for this CPU, compiling it if it is not there yet.

    The first answer holds for the life of the process.

    Raises:
        UnavailableError: If the CPU is too old, there is no compiler, building is forbidden, or
            the build failed.
    """
    with _LOCK:
        result = _load_once()
    if isinstance(result, str):
        raise UnavailableError(result)
    return result


def describe() -> str:
    """Say in a few words whether the kernel is there or could be; builds nothing."""
    candidates = _of_this_cpu()
    if not candidates:
        return f"not available: {_NO_INSTRUCTIONS}"
    for instructions in candidates:
        if library_path(instructions).exists():
            return f"built, for {instructions.name}"
    try:
        compiler = _compiler()
    except UnavailableError as error:
        return f"not available: {error}"
    return f"will be built on first use by {compiler[0]}, for {candidates[0].name}"


def best_instructions() -> str | None:
    """Return the best of `INSTRUCTION_SETS` that this CPU has; none if it has none of them."""
    return next((x.name for x in _of_this_cpu()), None)


def build(instructions: InstructionSet) -> Path:
    """Return the compiled kernel for an instruction set, compiling it if it is not there yet.

    Raises:
        UnavailableError: As `load`.
    """
    target = library_path(instructions)
    if target.exists():
        return target
    command = [*_compiler(), *_FLAGS, *instructions.flags, str(_SOURCE)]
    _logger.info("Compiling the native attention kernel, once, into %s.", target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Other processes may build the same: each writes its own file, and the last rename wins.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / target.name
            _compile([*command, "-o", str(output)], target.with_suffix(".log"))
            output.replace(target)
    except OSError as error:
        raise UnavailableError(
            f"its kernel cannot be written to {target.parent} ({error}); set XDG_CACHE_HOME."
        ) from error
    return target


def library_path(instructions: InstructionSet) -> Path:
    """Return where the kernel for an instruction set is, or would be."""
    content = repr((_FLAGS, instructions.flags, platform.libc_ver())).encode()
    digest = hashlib.sha256(content + _SOURCE.read_bytes() + _HEADER.read_bytes()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "ns_sparseattn" / "native" / f"{instructions.name}-{digest}.so"


_LOCK = threading.Lock()


@cache
def _load_once() -> ctypes.CDLL | str:
    """Return the kernel, or a sentence that says why it cannot be had."""
    failure = None
    for instructions in _of_this_cpu():
        try:
            path = build(instructions)
            library = ctypes.CDLL(str(path))
        except UnavailableError as error:
            failure = failure or str(error)
        except OSError as error:
            failure = failure or (
                f"its kernel cannot be loaded ({error}); delete it to have it built anew."
            )
        else:
            if failure is not None:
                # Such as a compiler that is older than the CPU.
                _logger.warning("Attention uses %s only: %s", instructions.name, failure)
            return library
    return failure or _NO_INSTRUCTIONS


_NO_INSTRUCTIONS = "it needs an x86 CPU with AVX2 and FMA, and Linux to tell."


def _of_this_cpu() -> list[InstructionSet]:
    """Return the instruction sets that this CPU has, the best first."""
    features = cpu_features()
    return [x for x in INSTRUCTION_SETS if x.features <= features]


def cpu_features() -> frozenset[str]:
    """Return the CPU's features as Linux names them, empty elsewhere.

    What torch is told to do without (``ATEN_CPU_CAPABILITY``, ``ONEDNN_MAX_CPU_ISA``) is left out.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    forbidden: tuple[str, ...] = ()
    for variable, limits in _LIMITS.items():
        forbidden += limits.get(os.environ.get(variable, "").lower(), ())
    return frozenset(x for x in flags.partition(":")[2].split() if not x.startswith(forbidden))


_AVX512 = ("avx512", "amx")
_BFLOAT16 = ("avx512_bf16", "amx")
_LIMITS: dict[str, dict[str, tuple[str, ...]]] = {
    "ATEN_CPU_CAPABILITY": {"default": ("avx2", *_AVX512), "avx2": _AVX512},
    "ONEDNN_MAX_CPU_ISA": {
        **dict.fromkeys(("sse41", "avx"), ("avx2", *_AVX512)),
        **dict.fromkeys(("avx2", "avx2_vnni", "avx2_vnni_2"), _AVX512),
        **dict.fromkeys(("avx512_core", "avx512_core_vnni"), _BFLOAT16),
    },
}
"""torch's variables, and the beginnings of the features that each of their values forbids."""


def _compiler() -> list[str]:
    """Return the command of a C++ compiler."""
    if os.environ.get("NS_SPARSEATTN_NO_BUILD", "0") not in ("", "0"):
        raise UnavailableError(
            "its kernel is not built yet, and NS_SPARSEATTN_NO_BUILD forbids to build it."
        )
    configured = shlex.split(os.environ.get("CXX", ""))
    for command in (configured,) if configured else ([name] for name in _COMPILERS):
        if shutil.which(command[0]):
            return command
    missing = configured[0] if configured else ", ".join(_COMPILERS)
    raise UnavailableError(
        f"its kernel is built on first use, and there is no C++ compiler ({missing})."
    )


def _compile(command: list[str], log: Path) -> None:
    """Run the compiler; what it says goes to a file if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
        output, is_built = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired:
        output, is_built = f"Stopped after {_TIMEOUT_S} s.\n", False
    if not is_built:
        log.write_text(f"{shlex.join(command)}\n{output}", encoding="utf-8")
        raise UnavailableError(f"its kernel could not be built; {log} says why.")
