"""Plant each bug of ``mutants.toml`` in the engine, one at a time, and check whether a test catches it.

    run.py --objects build/ctest/plain --build build/mutation [--only WORDS] [--jobs N]

``make mutation`` compiles the engine and the tests and then runs this script. A mutant costs the compilation of one C
file, one link for each program and the time until the first test fails. A test that exceeds its time limit has also
caught the bug. Each command must pass once on the unchanged engine before it runs on a mutant.

Where the system allows it, each run has its own /dev/shm, /var/tmp and processes. Files and processes that a mutant
leaves then disappear with the run. The exit status is 1 if a bug survived, or if the table of bugs no longer matches
the sources.
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
import subprocess
import sys
import threading
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STORE = ROOT / "csrc" / "store"
SHORTEST_LIMIT = 20.0
WALL = """
mount --bind "$1" /var/tmp && mount -t tmpfs tmpfs /dev/shm && shift && exec "$@"
"""


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Command:
    """One line of a mutant's ``tests``: environment variables, a program, and names of test cases."""

    text: str
    program: str
    cases: tuple[str, ...]
    variables: dict[str, str] = dataclasses.field(hash=False)

    @classmethod
    def parse(cls, text: str) -> Command:
        words = shlex.split(text)
        variables = {}
        while words and "=" in words[0]:
            key, _, value = words.pop(0).partition("=")
            variables[key] = value
        return cls(text, words[0], tuple(words[1:]), variables)


class Runner:
    def __init__(self, objects: pathlib.Path, build: pathlib.Path) -> None:
        self.objects = objects
        self.build = build
        self.cc = shlex.split(os.environ.get("CC_TEST", "cc"))
        self.flags = shlex.split(os.environ["CTEST_FLAGS"])
        # List the sources, because the folder may also contain object files of sources that were moved or removed.
        sources = sorted(path.relative_to(ROOT) for path in STORE.rglob("*.c"))
        self.engine = [objects / path.with_suffix(".o") for path in sources]
        self.wall = self._wall()
        self.seconds: dict[str, float] = {}
        self.lock = threading.Lock()

    def _wall(self) -> list[str]:
        """Return the command prefix that creates the namespaces, or an empty list if they are not available."""
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        words = ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", WALL, "sh"]
        try:
            done = subprocess.run(
                [*words, str(self.build), "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
            )
        except FileNotFoundError:
            return []
        return words if done.returncode == 0 else []

    def link(self, program: str, objects: list[pathlib.Path], out: pathlib.Path) -> None:
        folder = "torture" if program.startswith("torture_") else "c"
        test = self.objects / "tests" / folder / f"{program}.o"
        subprocess.run([*self.cc, "-pthread", str(test), *map(str, objects), "-o", str(out)], check=True)

    def run(self, command: Command, program: pathlib.Path, limit: float, folder: pathlib.Path) -> tuple[str, str]:
        """Return ``passed``, ``failed`` or ``hung``, and the output of the program."""
        files = folder / "var-tmp"
        files.mkdir(exist_ok=True)
        words = [str(program), *command.cases]
        if self.wall:
            words = [*self.wall, str(files), *words]
        process = subprocess.Popen(
            words,
            env={**os.environ, **command.variables},
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
            verdict = "passed" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            verdict, said = "hung", ""
        finally:
            # This process started the process group, so the group contains only processes of this run.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
            shutil.rmtree(files, ignore_errors=True)
        return verdict, said

    def prove(self, command: Command) -> str | None:
        """Run a command on the unchanged engine; return None if it passes, else its output."""
        with self.lock:
            if command.text in self.seconds:
                return None
            folder = self.build / "clean"
            folder.mkdir(parents=True, exist_ok=True)
            program = folder / command.program
            if not program.exists():
                self.link(command.program, self.engine, program)
            begun = time.monotonic()
            verdict, said = self.run(command, program, 600, folder)
            if verdict != "passed":
                return f"{verdict} without any bug:\n{said}"
            self.seconds[command.text] = time.monotonic() - begun
        return None

    def judge(self, mutant: Mutant, number: int) -> tuple[str, str]:
        """Return ``caught``, ``SURVIVED`` or ``BROKEN``, and the command that caught it or the reason."""
        text = (STORE / mutant.file).read_text()
        if text.count(mutant.old) != 1:
            return "BROKEN", f"its old text occurs {text.count(mutant.old)} times in {mutant.file}"
        folder = self.build / f"{number:03}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            original = STORE / mutant.file
            source = folder / original.name
            source.write_text(text.replace(mutant.old, mutant.new))
            thing = source.with_suffix(".o")
            done = subprocess.run(
                [*self.cc, *self.flags, f"-I{original.parent}", "-O2", "-w", "-c", str(source), "-o", str(thing)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                return "BROKEN", "it does not compile: " + done.stderr
            objects = [thing if o.name == thing.name else o for o in self.engine]
            for test in mutant.tests:
                command = Command.parse(test)
                why = self.prove(command)
                if why is not None:
                    return "BROKEN", f"{test} {why}"
                program = folder / command.program
                if not program.exists():
                    self.link(command.program, objects, program)
                limit = max(SHORTEST_LIMIT, 6 * self.seconds[test])
                verdict, said = self.run(command, program, limit, folder)
                if verdict != "passed":
                    case = next((line.split()[1] for line in said.splitlines() if line.startswith("FAIL ")), "")
                    how = "hung" if verdict == "hung" else case or "crashed"
                    return "caught", f"{test}: {how}"
            return "SURVIVED", "; ".join(mutant.tests)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant bugs in the engine; each must be caught by a test.")
    parser.add_argument("--objects", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--table", type=pathlib.Path, default=HERE / "mutants.toml")
    parser.add_argument("--only", default="", help="only mutants whose name or file contains this")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    with options.table.open("rb") as table:
        mutants = [Mutant(**{**m, "tests": tuple(m["tests"])}) for m in tomllib.load(table)["mutant"]]
    mutants = [m for m in mutants if options.only in m.name or options.only in m.file]
    build = options.build.resolve()
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True)
    runner = Runner(options.objects.resolve(), build)
    if not runner.wall:
        print("mutation: no namespaces here: what a mutant leaves in /dev/shm stays there")
    counts = {"caught": 0, "SURVIVED": 0, "BROKEN": 0}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        judged = pool.map(runner.judge, mutants, range(len(mutants)))
        for mutant, (verdict, how) in zip(mutants, judged, strict=True):
            counts[verdict] += 1
            print(f"{verdict:8}  {mutant.file:10}  {mutant.name}  <-  {how}", flush=True)
    print(
        f"mutation: {len(mutants)} bugs, {counts['caught']} caught, {counts['SURVIVED']} survived, {counts['BROKEN']} broken"
    )
    shutil.rmtree(build, ignore_errors=True)
    return 0 if counts["caught"] == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
