"""Run scripts in fresh interpreters that do not use the store of the test run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

from patience import patience


def environment() -> dict[str, str]:
    """Return the environment without the hint to this process's store and without warnings about forks and threads."""
    kept = {key: value for key, value in os.environ.items() if key != "PYRAY_SER_STORE"}
    return {**kept, "PYTHONWARNINGS": "ignore:This process (pid:DeprecationWarning"}


def run(
    script: str, *, timeout: float = 90, status: int = 0, errors: bool = False, prefix: tuple[str, ...] = ()
) -> str:
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
    prefix : tuple of str
        Command that runs the interpreter, for example in other namespaces.

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
        process = subprocess.Popen(
            [*prefix, sys.executable, "-P", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=folder,
            process_group=0,
        )
        with process:
            try:
                output, messages = process.communicate(timeout=patience(timeout))
            except subprocess.TimeoutExpired as error:
                os.killpg(process.pid, signal.SIGKILL)  # also its children, for which communicate() would wait
                output, messages = process.communicate()
                raise AssertionError(
                    f"not over after {error.timeout:.0f} s, told until then:\n{output}{messages}"
                ) from None
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    assert process.returncode == status, f"status {process.returncode}\n{output}\n{messages}"
    assert errors or not messages, messages
    return output.strip()
