"""``pyray-ser doctor``: check whether this machine meets the package's needs, and tell how to fix problems."""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import re
import resource
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from .. import _core
from ..exceptions import PyraySerError
from ..store import named_stores
from .clean import left_behind, spill_directories
from .output import bytes_text, count, printable, write_json
from .stores import find

__all__ = ["Finding", "add_arguments", "examine", "run"]

OK, INFO, WARN, FAIL = "ok", "info", "warn", "fail"


@dataclass
class Finding:
    """The result of one check."""

    name: str
    level: str
    value: str
    remedy: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _number(path: str) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.isdigit() else None


# ---- memory -----------------------------------------------------------------------------------------------------------


def _shared_memory() -> Iterator[Finding]:
    try:
        space = os.statvfs("/dev/shm")
    except OSError as problem:
        yield Finding(
            "/dev/shm",
            WARN,
            str(problem),
            "named stores need it, or init(name=) with a path on another tmpfs; others do not",
        )
        return
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    text = f"{bytes_text(size)}, {bytes_text(free)} free"
    if free < 1 << 30:
        yield Finding(
            "/dev/shm",
            WARN,
            text,
            "named stores cannot grow beyond it (others can): docker run --shm-size=..., or mount -o remount,size=... /dev/shm",
        )
    else:
        yield Finding("/dev/shm", OK, text)


def _meminfo() -> dict[str, int]:
    found = {}
    for line in (_read("/proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[key] = int(words[0]) * 1024
    return found


def cgroup_limits(root: str = "/sys/fs/cgroup", membership: str | None = None) -> list[tuple[str, int, int | None]]:
    """
    Return the memory limits of this process, from its own cgroup up to the root.

    Returns
    -------
    list of (str, int, int or None)
        For each cgroup: its directory, and its limit and usage in bytes.
    """
    found = []
    for line in (membership if membership is not None else _read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, limit_name, usage_name = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_name, usage_name = f"{root}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        while True:
            folder = base + path.rstrip("/")
            limit = _number(f"{folder}/{limit_name}")
            # Skip "max", which is not a number, and the huge number with which cgroup v1 expresses "no limit".
            if limit is not None and limit < 1 << 60:
                found.append((folder, limit, _number(f"{folder}/{usage_name}")))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return found


def _memory() -> Iterator[Finding]:
    info = _meminfo()
    total, available = info.get("MemTotal", 0), info.get("MemAvailable", 0)
    yield Finding("memory", OK, f"{bytes_text(total)}, {bytes_text(available)} available")
    limits = cgroup_limits()
    for folder, limit, usage in limits:
        used = "" if usage is None else f", {bytes_text(usage)} in use"
        tight = usage is not None and limit - usage < 256 << 20
        yield Finding(
            "cgroup memory limit",
            WARN if tight else INFO,
            f"{bytes_text(limit)} in {folder}{used}",
            "puts fail before this limit is met, but memory of others may meet it and the kernel kills: raise it"
            if tight
            else None,
        )
    if not limits:
        yield Finding("cgroup memory limit", OK, "none")
    tightest = min([total, *(limit for _, limit, _ in limits)])
    yield Finding(
        "default capacity", INFO, f"about {bytes_text(int(tightest * 0.3))}; init(capacity=) or PYRAY_SER_CAPACITY"
    )
    if _number("/proc/sys/vm/overcommit_memory") == 2:
        yield Finding(
            "vm.overcommit_memory",
            WARN,
            "2: every mapping counts in full",
            "sysctl vm.overcommit_memory=0, or a small init(capacity=)",
        )


def _limits() -> Iterator[Finding]:
    for name, which, enough, remedy in (
        (
            "address space (ulimit -v)",
            resource.RLIMIT_AS,
            64 << 30,
            "the default capacity shrinks to fit: ulimit -v unlimited",
        ),
        ("open files (ulimit -n)", resource.RLIMIT_NOFILE, 256, "a store needs 3 to 5 descriptors: ulimit -n 1024"),
        (
            "file size (ulimit -f)",
            resource.RLIMIT_FSIZE,
            64 << 30,
            "it limits stores and spill files: ulimit -f unlimited",
        ),
    ):
        soft = resource.getrlimit(which)[0]
        if soft == resource.RLIM_INFINITY:
            yield Finding(name, OK, "unlimited")
        else:
            text = str(soft) if which == resource.RLIMIT_NOFILE else bytes_text(soft)
            yield Finding(name, OK if soft >= enough else WARN, text, None if soft >= enough else remedy)
    maps = _number("/proc/sys/vm/max_map_count")
    if maps is not None:
        few = maps < 65530
        remedy = "views of create() and of spilled objects need a mapping each: sysctl vm.max_map_count=262144"
        yield Finding("vm.max_map_count", WARN if few else OK, str(maps), remedy if few else None)


# ---- kernel -----------------------------------------------------------------------------------------------------------


def _kernel() -> Iterator[Finding]:
    yield Finding("kernel", OK if sys.platform == "linux" else FAIL, f"{platform.system()} {platform.release()}")
    missing = []
    try:
        os.close(os.memfd_create("pyray_ser-doctor", os.MFD_CLOEXEC))
    except OSError as problem:
        missing.append(f"memfd_create ({problem.strerror})")
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(23)  # MADV_POPULATE_WRITE
        except OSError:
            missing.append("MADV_POPULATE_WRITE (Linux 5.14)")
    text = "memfd, populate" if not missing else "missing: " + ", ".join(missing)
    yield Finding("kernel features", WARN if missing else OK, text, "a newer kernel" if missing else None)
    if not os.path.isdir("/proc/self/fd"):
        yield Finding(
            "/proc", FAIL, "not mounted", "processes find each other's stores through it: mount -t proc proc /proc"
        )
    elif any("hidepid=" in line and "hidepid=0" not in line for line in _proc_mounts()):
        yield Finding("/proc", INFO, "mounted with hidepid: processes of other users are not seen, which is fine")
    else:
        yield Finding("/proc", OK, "mounted")
    huge = _read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    chosen = huge[huge.find("[") + 1 : huge.find("]")] if huge and "[" in huge else "unknown"
    asked = _at_least((6, 1))  # MADV_COLLAPSE does not depend on the setting for page faults
    yield Finding(
        "huge pages for shared memory",
        OK if chosen not in ("deny", "unknown") and (asked or chosen != "never") else INFO,
        f"{chosen}, large puts ask for them" if asked and chosen not in ("deny", "unknown") else chosen,
        "optional: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        if chosen == "deny" or (chosen == "never" and not asked)
        else None,
    )


def _at_least(version: tuple[int, int]) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= version


def _proc_mounts() -> list[str]:
    return [line for line in (_read("/proc/mounts") or "").splitlines() if line.split(" ")[1:3] == ["/proc", "proc"]]


def removes_ipc(folders: tuple[str, ...] = ("/etc/systemd", "/run/systemd", "/usr/lib/systemd")) -> bool:
    """Return whether systemd-logind removes a user's shared memory at logout: ``RemoveIPC=``, which is on by default."""
    files = [f"{folder}/logind.conf" for folder in reversed(folders)]
    for folder in reversed(folders):
        try:
            names = sorted(os.listdir(f"{folder}/logind.conf.d"))
        except OSError:
            continue
        files += [f"{folder}/logind.conf.d/{name}" for name in names if name.endswith(".conf")]
    value = True
    for path in files:
        for line in (_read(path) or "").splitlines():
            key, _, setting = line.partition("=")
            if key.strip() == "RemoveIPC":
                value = setting.strip().lower() in ("yes", "true", "on", "1")
    return value


def _logout() -> Iterator[Finding]:
    # The setting affects only ordinary users, and has an effect only if systemd-logind runs.
    if os.getuid() < 1000 or not os.path.isdir("/run/systemd/seats"):
        yield Finding("RemoveIPC", OK, "does not concern this user")
    elif removes_ipc():
        yield Finding(
            "RemoveIPC",
            WARN,
            "yes: named stores lose their file when this user's last session ends",
            "RemoveIPC=no in /etc/systemd/logind.conf, or loginctl enable-linger; unnamed stores are not concerned",
        )
    else:
        yield Finding("RemoveIPC", OK, "no")


# ---- the package and its stores ---------------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    from .._version import __version__

    found = [f"pyray_ser {__version__}", f"Python {platform.python_version()}"]
    for package in ("numpy", "cloudpickle"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(package, FAIL, "not installed", f"pip install {package}")
    yield Finding("versions", OK, ", ".join(found))


def _directory() -> Iterator[Finding]:
    folder = named_stores.directory()
    try:
        named_stores.check_directory(folder)
    except FileNotFoundError:
        yield Finding("directory of named stores", OK, f"{folder} (made when it is needed)")
    except (PyraySerError, OSError) as problem:
        yield Finding(
            "directory of named stores",
            FAIL,
            str(problem),
            f"its owner, or root, removes {folder}; or init(name=) with a path on another tmpfs",
        )
    else:
        mode = stat.S_IMODE(os.stat(folder).st_mode)
        yield Finding("directory of named stores", OK, f"{folder}, mode {mode:04o}")


def _stale() -> Iterator[Finding]:
    stores = find()
    used = [store for store in stores if store.used]
    yield Finding("stores in use", INFO, ", ".join(store.label for store in used) or "none")
    dead = left_behind(stores)
    size = sum(entry["bytes"] for entry in dead)
    names = ", ".join(entry["path"] for entry in dead)
    yield Finding(
        "stale stores",
        WARN if dead else OK,
        f"{names} ({bytes_text(size)})" if dead else "none",
        "pyray-ser clean" if dead else None,
    )
    for path in spill_directories(stores, []):
        try:
            gone = _core.spill_clean(path, True)
        except OSError as problem:
            yield Finding(
                "spill directory", WARN, f"{path}: {problem.strerror}", "make it, or unset PYRAY_SER_SPILL_DIR"
            )
            continue
        text = f"{path}, {bytes_text(_free(path))} free"
        if gone:
            yield Finding(
                "spill directory",
                WARN,
                f"{text}, with what {count(gone, 'store', 'stores')} left behind",
                "pyray-ser clean",
            )
        else:
            yield Finding("spill directory", OK, text)


def _free(path: str) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def _trial() -> Iterator[Finding]:
    import subprocess

    # Use a separate process, because the kernel may kill the process by a signal if it refuses memory for the store.
    script = (
        "import pyray_ser, pyray_ser.store.discovery as s\n"
        "s.open_store(inherit=False, capacity=16 << 20)\n"
        "assert pyray_ser.get(pyray_ser.put(b'x' * 1000000)) == b'x' * 1000000\n"
        "pyray_ser.init().check()"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYRAY_SER_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-P", "-c", script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("trial", FAIL, "a put and a get took more than 60 s", "the other lines may tell why")
        return
    if done.returncode == 0:
        yield Finding("trial", OK, "a store was made, a value put and read")
    else:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        yield Finding("trial", FAIL, last[0], "the other lines may tell why")


CHECKS = (_versions, _kernel, _memory, _shared_memory, _limits, _logout, _directory, _stale, _trial)


def examine() -> list[Finding]:
    """Run all checks; a check that cannot run also counts as a finding."""
    found: list[Finding] = []
    for look in CHECKS:
        try:
            found += look()
        except (OSError, ValueError, RuntimeError) as problem:
            found.append(
                Finding(look.__name__.strip("_").replace("_", " "), WARN, f"could not be looked at: {problem}")
            )
    return found


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; return 1 if something does not work."""
    found = examine()
    status = int(any(finding.level == FAIL for finding in found))
    if arguments.json:
        write_json({"findings": [asdict(finding) for finding in found], "ok": not status})
        return status
    width = max(len(finding.name) for finding in found)
    for finding in found:
        print(f"{finding.level:<4}  {finding.name:<{width}}  {printable(finding.value)}")
        if finding.remedy:
            print(f"{'':<{width + 6}}  -> {finding.remedy}")
    return status
