"""JAX: compatible versions, devices that are present and compute, and a writable cache."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from aifx.core.errors import EnvironmentFault
from aifx.core.facts import Absent, Unknown, from_document
from aifx.core.files import check_private
from aifx.core.project import cache_location
from aifx.core.version import DISTRIBUTION
from aifx.health.host import Host
from aifx.health.probes.tpu import find_chips
from aifx.health.probing import counted, probe

DEVICES_LIMIT_S = 10.0
DRIVERS = {"cuda12": 525, "cuda13": 580}
"""The oldest driver, by the extra of jax that needs it (docs.jax.dev, Installation, NVIDIA GPU)."""

OF_DEVICES = ("platform", "devices", "num_devices", "gpus", "memory_bytes")
ENDED = re.compile(r" failed \((signal \d+|exit \d+)[^:]*\): (.*)", re.DOTALL)
"""The message for a process that a signal ended. A process that only did not answer may not be broken."""

NOT_INSTALLED = "aifx is not installed as a package"
REFUSED = re.compile(r"Unknown flags? in \w+: (.+)")


@probe("jax", "python", limit_s=25.0)
def collect(host: Host) -> dict[str, Any]:
    packages = host.ask("aifx.health.jax_probe", "packages", name="jax_packages", limit_s=8)
    if isinstance(packages, Absent):
        return {"python": packages, "jax": packages}
    python, versions = _versions(packages, has_tpu=bool(find_chips(host)))
    seen = packages.get("nvml", {}) if isinstance(packages, dict) else {}
    environ = host.environ()
    facts = {**versions, **_gpus(seen, environ.get("CUDA_VISIBLE_DEVICES"), environ.get("JAX_CUDA_VISIBLE_DEVICES"))}
    answer = from_document(host.ask("aifx.health.jax_probe", "devices", name="jax", limit_s=DEVICES_LIMIT_S))
    return {"python": python, "jax": {**facts, **_devices(answer), "cache": host.measure("jax_cache", _cache)}}


def _versions(answer: Any, has_tpu: bool) -> tuple[Any, Any]:
    if not isinstance(answer, dict):
        why = answer if isinstance(answer, Unknown) else Unknown("the list of packages is not a table")
        names = ("version", "jaxlib", "requirements", "num_overlaps", "fits_aifx", "wanted_by_aifx", "install_line")
        return why, dict.fromkeys(names, why)
    packages: dict[str, str] = answer.get("packages", {})
    missing = Absent("jax is not installed")
    wanted, version = _wanted_by_aifx(answer), packages.get("jax")
    drivers = [driver for flavour, driver in DRIVERS.items() if f"jax-{flavour}-plugin" in packages]
    python, wanted_python = answer.get("python"), answer.get("requires_python") or Absent(NOT_INSTALLED)
    is_supported = _fits(str(python), wanted_python)
    return {"version": python, "wanted": wanted_python, "is_supported": is_supported}, {
        "version": version or missing,
        "jaxlib": packages.get("jaxlib") or Absent("jaxlib is not installed"),
        "packages": packages,
        "requirements": list(_requirements(answer, has_tpu)),
        "overlaps": answer.get("overlaps"),
        "num_overlaps": len(answer.get("overlaps") or ()),
        "wanted_by_aifx": wanted,
        "fits_aifx": _fits(version, wanted) if version else missing,
        "driver_needed": max(drivers) if drivers else Absent("no CUDA plugin of jax is installed"),
        "install_line": install_line(answer, has_tpu),
    }


def _fits(version: str, wanted: str | Absent) -> bool | Absent | Unknown:
    try:
        return wanted if isinstance(wanted, Absent) else SpecifierSet(wanted).contains(version, prereleases=True)
    except (InvalidVersion, InvalidSpecifier) as error:
        return Unknown(str(error))


def _wanted_by_aifx(answer: Mapping[str, Any]) -> str | Absent:
    for text in answer.get("requires", {}).get(DISTRIBUTION, ()):
        requirement = Requirement(text)
        if requirement.name == "jax" and not requirement.marker:
            return str(requirement.specifier)
    return Absent(NOT_INSTALLED)


def _requirements(answer: Mapping[str, Any], has_tpu: bool) -> Iterator[dict[str, Any]]:
    """Return what jax, jaxlib and the plugins require of one another, by their metadata."""
    packages = answer.get("packages", {})
    for by, texts in answer.get("requires", {}).items():
        if by == DISTRIBUTION:
            continue
        for text in texts:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            name = canonicalize_name(requirement.name)
            if not _applies(requirement, by, answer, has_tpu) or name == by:
                continue
            is_extra = "extra" in str(requirement.marker or "")  # missing ones are CUDA of the system
            if name not in packages and (is_extra or name not in ("jaxlib", "numpy", "scipy", "ml-dtypes")):
                continue
            version = packages.get(name)
            yield {
                "device": f"{name} for {by}",
                "name": name,
                "version": version or "not installed",
                "wanted": str(requirement.specifier) or "any version",
                "by": f"{by} {packages.get(by)}",
                "fits": _fits(version, str(requirement.specifier)) if version else False,
                "is_cuda": name.startswith("nvidia-"),
            }


def _applies(requirement: Requirement, by: str, answer: Mapping[str, Any], has_tpu: bool) -> bool:
    """Return whether a package requires it on this Python, with the extras whose plugins are installed.

    JAX loads libtpu only on a machine with TPUs. Elsewhere any version of it compiles for `aifx plan`.
    """
    packages, python = answer.get("packages", {}), str(answer.get("python"))
    if by == "jax":
        extras = [match[1] for name in packages if (match := re.fullmatch(r"jax-(\w+)-plugin", name))]
        extras += ["tpu"] if has_tpu and "libtpu" in packages else []
    else:
        extras = ["with-cuda"] if any(name.startswith("nvidia-") for name in packages) else []
    there = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python}
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**there, "extra": extra}) for extra in ("", *extras))


def install_line(answer: Mapping[str, Any], has_tpu: bool) -> str:
    """Return the command that installs jax, jaxlib and the plugin in versions that fit this machine and aifx."""
    packages = answer.get("packages", {})
    driver = _major(answer.get("nvml", {}).get("driver"))
    extra = ""
    if isinstance(driver, int):
        able = [flavour for flavour, needed in DRIVERS.items() if driver >= needed] or ["cuda12"]
        there = [flavour for flavour in able if f"jax-{flavour}-plugin" in packages]
        extra = f"[{(there or able)[-1]}]"
    elif has_tpu:
        extra = "[tpu]"
    version, wanted = packages.get("jax"), _wanted_by_aifx(answer)
    if version and (isinstance(wanted, Absent) or _fits(version, wanted) is True):
        wanted = f"=={version}"
    installer = "uv pip install" if answer.get("installer") == "uv" else "pip install"
    return f'{installer} -U "jax{extra}{wanted if isinstance(wanted, str) else ""}"'


def _major(version: Any) -> int | Absent:
    match = re.match(r"\d+", str(version or ""))
    return int(match[0]) if match else Absent("there is no NVIDIA driver")


def _gpus(nvml: Mapping[str, Any], visible: str | None, of_jax: str | None = None) -> dict[str, Any]:
    """Return the GPUs of NVML, and how many of them CUDA_VISIBLE_DEVICES and JAX's own variable leave."""
    if "gpus" not in nvml:
        why = Absent(f"no NVIDIA GPU: {nvml.get('absent', 'NVML was not called')}")
        return dict.fromkeys(("driver", "driver_major", "driver_cuda", "gpus_seen", "gpus_visible"), why)
    left: int | Absent = nvml["gpus"]
    if nvml.get("mig") or "MIG-" in (visible or ""):
        left = Absent("the GPUs are partitioned (MIG): CUDA shows a process only one partition")
    elif visible is not None:
        left = _visible(visible, nvml["gpus"])
    if isinstance(left, int) and of_jax and of_jax != "all":
        left = min(left, len(of_jax.split(",")))
    return {
        "driver": nvml.get("driver"),
        "driver_major": _major(nvml.get("driver")),
        "driver_cuda": nvml.get("cuda"),
        "gpus_seen": nvml["gpus"],
        "gpus_visible": left,
    }


def _visible(text: str, count: int) -> int:
    """Return the number of devices that CUDA shows: those before the first unknown one (CUDA C++ Programming Guide)."""
    names: set[str] = set()
    for word in text.replace(" ", "").split(","):
        is_known = word.startswith("GPU-") or (word.isdigit() and int(word) < count)
        if not is_known or word in names:
            break
        names.add(word)
    return len(names)


def _devices(answer: Any) -> dict[str, Any]:
    """Return whether JAX starts, and the devices. A device that another process uses is not a fault."""
    starts: Any = True
    error, refused = "", list[str]()
    if isinstance(answer, dict):
        error = str(answer.get("error") or "")
        if error:
            starts = Absent(f"another process uses the devices: {error}") if answer.get("is_held") else False
    else:
        starts = answer if isinstance(answer, (Absent, Unknown)) else Unknown("the report of JAX is not a table")
        if isinstance(starts, Unknown) and (ended := ENDED.search(starts.why)):
            error, starts = f"{ended[1]}: {ended[2]}", False
            match = REFUSED.search(error)
            refused = match[1].split() if match else []
    state = {"starts": starts, "error": error, **counted(refused_flags=refused)}
    if starts is not True:
        return {**state, **dict.fromkeys(OF_DEVICES, Absent("JAX gave no devices"))}
    devices = answer.get("devices")
    tables = [d for d in devices or () if isinstance(d, dict)]
    sizes = [d["memory_bytes"] for d in tables if d.get("memory_bytes")]
    return {
        **state,
        "platform": answer.get("platform"),
        "start_s": answer.get("start_s"),
        "devices": devices,
        "num_devices": len(tables),
        "gpus": sum(d.get("platform") == "gpu" for d in tables),
        "memory_bytes": min(sizes) if sizes else Absent("the devices do not report their memory"),
    }


def _cache() -> dict[str, Any]:
    """Return the folder of compiled programs, as aifx chooses it, and whether it is writable."""
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if own and "://" in own:
        return {"folder": own, "is_writable": True, "why": "not of this machine's file system"}
    folder, why = Path(own) if own else cache_location() / "jax", ""
    try:
        for path in (folder,) if own else (folder.parent, folder):
            check_private(path)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"aifx")
    except EnvironmentFault as fault:
        why = fault.why
    except OSError as error:
        why = error.strerror or str(error)
    return {"folder": str(folder), "is_writable": not why, "why": why}
