"""Plant each fault of ``picklers.toml`` in the picklers, one at a time, and check whether the intruder finds it.

    run_picklers.py --build build/intruder --site build/intruder/site --out build/mutation-picklers [--only WORDS] [--jobs N]

``make mutation-picklers`` makes a build with ``PYRAY_SER_INTRUDER=1`` and then runs this script. A mutant costs the
compilation of its changed C files, one link of their extension, and the time until the intruder fails. A run that
crashes or exceeds its time limit has also found the fault. Each line of arguments must pass once on the unchanged
picklers before it runs on a mutant.

The exit status is 1 if the intruder missed a fault or the table no longer matches the sources.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib

import numpy

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHORTEST_LIMIT = 60.0
# The flags of setup.py, but with less optimization, which halves the compile time.
FLAGS = (
    "-std=gnu11 -pthread -fvisibility=hidden -fno-strict-aliasing -O1 -g0 -DNDEBUG -fPIC -w"
    " -DPRP_INTRUDER=1 -DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION"
).split()


@dataclasses.dataclass(frozen=True)
class Edit:
    file: str
    old: str
    new: str


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    fault: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    @classmethod
    def parse(cls, entry: dict) -> Mutant:
        edits = tuple(Edit(**edit) for edit in entry.pop("edits"))
        return cls(edits=edits, tests=tuple(entry.pop("tests")), **entry)

    @property
    def folder(self) -> str:
        """The folder of csrc that contains all files that the mutant changes."""
        (folder,) = {edit.file.partition("/")[0] for edit in self.edits}
        return folder


@dataclasses.dataclass(frozen=True)
class Verdict:
    how: str  # passed, failed, crashed or hung
    points: int
    intruded: int
    doing: str  # the object, the call, and the action that disturbed it
    said: str

    def __str__(self) -> str:
        return f"{self.how} after {self.points} points, {self.intruded} of them intruded"


class Runner:
    def __init__(self, build: pathlib.Path, site: pathlib.Path, out: pathlib.Path) -> None:
        self.build = build
        self.site = site
        self.out = out
        self.cc = shlex.split(os.environ.get("CC", "cc"))
        folders = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_dir())
        includes = ["csrc", *(str(path.relative_to(ROOT)) for path in folders if "store" not in path.parts)]
        includes += [numpy.get_include(), sysconfig.get_path("include")]
        self.flags = [*FLAGS, *(f"-I{path}" for path in includes)]
        self.passed: dict[str, float] = {}
        self.lock = threading.Lock()

    def objects(self, folder: str) -> dict[str, pathlib.Path]:
        """Return the object files of an extension by their sources; the key "pyx" is for the Cython code."""
        temp = self.build / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        found = {}
        # The folder may also contain object files of sources that were moved or removed.
        for source in sorted((ROOT / "csrc" / folder).rglob("*.c")):
            path = source.relative_to(ROOT)
            found[str(path)] = temp / path.with_suffix(".o")
        # The object file of Cython's output has the absolute path of its source within this folder.
        found["pyx"] = temp / temp.relative_to("/") / "cython" / "pyx" / "pyray_ser" / f"_{folder}.o"
        return found

    def copy(self, folder: pathlib.Path) -> None:
        """
        Copy the picklers' sources and the intruder into a new folder, arranged as in the checkout.

        The intruder needs the sources, because it reads them.
        """
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("store"))
        shutil.copytree(ROOT / "tests" / "fuzz", folder / "tests" / "fuzz", ignore=shutil.ignore_patterns("corpus"))
        package = folder / "site" / "pyray_ser"
        package.mkdir(parents=True)
        for path in (self.site / "pyray_ser").iterdir():
            (package / path.name).symlink_to(path)

    def compile(self, mutant: Mutant, folder: pathlib.Path) -> str | None:
        """Compile the changed files and link them with the other objects; return the error output, or None."""
        objects = self.objects(mutant.folder)
        commands = []
        for path in sorted({f"csrc/{edit.file}" for edit in mutant.edits}):
            objects[path] = folder / pathlib.Path(path).with_suffix(".o")
            commands.append([*self.cc, *self.flags, "-c", path, "-o", str(objects[path])])
        module = folder / "site" / "pyray_ser" / f"_{mutant.folder}{sysconfig.get_config_var('EXT_SUFFIX')}"
        module.unlink()
        commands.append([*self.cc, "-shared", "-pthread", *map(str, objects.values()), "-o", str(module)])
        for command in commands:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return done.stderr
        return None

    def run(self, arguments: str, folder: pathlib.Path, limit: float) -> Verdict:
        """Run the copy of the intruder in a folder."""
        record = folder / "record"
        script = folder / "tests" / "fuzz" / "intruder.py"
        process = subprocess.Popen(
            [sys.executable, "-P", str(script), "--record", str(record), "--most", "1", *shlex.split(arguments)],
            env={**os.environ, "PYTHONPATH": str(folder / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        try:
            said, _ = process.communicate(timeout=limit)
            code = process.returncode
            how = "passed" if code == 0 else "failed" if code == 1 else "crashed" if code < 0 else f"exited with {code}"
        except subprocess.TimeoutExpired:
            how, said = "hung", ""
        finally:
            # This process started the process group, so the group contains only processes of this run.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        points, intruded, doing = struct.unpack("=QQ240s", record.read_bytes()) if record.exists() else (0, 0, b"")
        doing = doing.rstrip(b"\0 ").decode(errors="replace")
        if how in ("failed", "crashed") and not doing:
            how = f"exited with {code} before it began"
        return Verdict(how, points, intruded, doing, said)

    def prove(self, arguments: str) -> str | None:
        """Run the intruder on the unchanged picklers; return None if it passes, else its output."""
        with self.lock:
            if arguments in self.passed:
                return None
            folder = self.out / "clean"
            self.copy(folder)
            begun = time.monotonic()
            verdict = self.run(arguments, folder, 600)
            if verdict.how != "passed":
                return f"{verdict} without any fault:\n{verdict.said}"
            self.passed[arguments] = time.monotonic() - begun
            print(f"clean     {arguments}: {verdict}", flush=True)
        return None

    def judge(self, mutant: Mutant, number: int) -> tuple[str, str]:
        """Return ``caught``, ``SURVIVED`` or ``BROKEN``, and the run that caught it or the reason."""
        folder = self.out / f"{number:03}"
        self.copy(folder)
        try:
            for edit in mutant.edits:
                path = folder / "csrc" / edit.file
                text = path.read_text()
                if text.count(edit.old) != 1:
                    return "BROKEN", f"an old text occurs {text.count(edit.old)} times in {edit.file}: {edit.old}"
                path.write_text(text.replace(edit.old, edit.new))
            complaint = self.compile(mutant, folder)
            if complaint is not None:
                return "BROKEN", "it does not compile: " + complaint
            for arguments in mutant.tests:
                complaint = self.prove(arguments)
                if complaint is not None:
                    return "BROKEN", f"{arguments} {complaint}"
                verdict = self.run(arguments, folder, max(SHORTEST_LIMIT, 6 * self.passed[arguments]))
                if "exited" in verdict.how:
                    return "BROKEN", f"{arguments} {verdict}:\n{verdict.said}"
                if verdict.how != "passed":
                    fault = verdict.said.partition("\n")[0]  # after a crash, this is not a line about the fault
                    if not fault.startswith(verdict.doing):
                        fault = verdict.doing
                    return "caught", f"{arguments}: {verdict}: {fault}"
            return "SURVIVED", "; ".join(mutant.tests)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults in the picklers; the intruder must find each.")
    parser.add_argument(
        "--build", type=pathlib.Path, required=True, help="where a build with PYRAY_SER_INTRUDER=1 has its objects"
    )
    parser.add_argument("--site", type=pathlib.Path, required=True, help="where that build is installed")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--table", type=pathlib.Path, default=HERE / "picklers.toml")
    parser.add_argument("--only", default="", help="only mutants whose fault, name or files contain this")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    with options.table.open("rb") as table:
        mutants = [Mutant.parse(entry) for entry in tomllib.load(table)["mutant"]]
    mutants = [
        m for m in mutants if any(options.only in text for text in (m.fault, m.name, *(e.file for e in m.edits)))
    ]
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    runner = Runner(options.build.absolute(), options.site.absolute(), out)
    counts = {"caught": 0, "SURVIVED": 0, "BROKEN": 0}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        judged = pool.map(runner.judge, mutants, range(len(mutants)))
        for mutant, (verdict, how) in zip(mutants, judged, strict=True):
            counts[verdict] += 1
            print(f"{verdict:8}  {mutant.fault:7}  {mutant.name}  <-  {how}", flush=True)
    print(
        f"mutation-picklers: {len(mutants)} faults, {counts['caught']} found,"
        f" {counts['SURVIVED']} not found, {counts['BROKEN']} broken"
    )
    shutil.rmtree(out, ignore_errors=True)
    return 0 if counts["caught"] == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
