"""Run scripts in fresh interpreters that do not use the store of the test run."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from patience import patience


def environment() -> dict[str, str]:
    """Return the environment without the hint to this process's store, and without Python 3.12's warning about forks
    with threads."""
    kept = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
    return {**kept, "PYTHONWARNINGS": "ignore:This process (pid:DeprecationWarning"}


def run(script: str, *, timeout: float = 90, status: int = 0, errors: bool = False) -> str:
    """
    Run a script in a fresh interpreter.

    Parameters
    ----------
    script : str
    timeout : float
        In seconds, on an idle machine.
    status : int
        The expected exit status; negative for a signal.
    errors : bool
        Whether the script may write to stderr.

    Returns
    -------
    str
        The output of the script.
    """
    # Write the script to a file, because spawned children must be able to import the main module.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pyray_ser-test-") as folder:
        path = os.path.join(folder, "script.py")
        with open(path, "w") as file:
            file.write(textwrap.dedent(script))
        try:
            done = subprocess.run(
                [sys.executable, "-P", path],
                capture_output=True,
                text=True,
                timeout=patience(timeout),
                env=environment(),
                cwd=folder,
            )
        except subprocess.TimeoutExpired as error:
            told = b"".join(part for part in (error.stdout, error.stderr) if isinstance(part, bytes)).decode(
                errors="replace"
            )
            raise AssertionError(f"not over after {error.timeout:.0f} s, told until then:\n{told}") from None
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert errors or not done.stderr, done.stderr
    return done.stdout.strip()
