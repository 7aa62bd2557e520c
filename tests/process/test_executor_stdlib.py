"""Run the executor tests of CPython's own suite with `Executor`.

The tests are those of the interpreter's package `test`. They are not part of this repository. CPython 3.11.5 to 3.11.7 and
3.12.0 to 3.12.1 do not install them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import isolated
import pytest
from patience import patience

# Test -> why `Executor` behaves differently.
PIECES = "the worker processes start later, in the threads of the pool, and the executor has no public table of them"
ERRORS = "only the call fails whose arguments or result cannot be loaded; the executor goes on"
EXCLUDED = {
    "test_killed_child": PIECES,
    "test_saturation": PIECES,
    "test_idle_process_reuse_one": PIECES,
    "test_idle_process_reuse_multiple": PIECES,
    "test_cancel_futures": PIECES + ", so all of the calls may be cancelled before the first one starts",
    "test_processes_terminate": PIECES,
    "test_context_manager_shutdown": PIECES,
    "test_del_shutdown": PIECES,
    "test_shutdown_no_wait": PIECES,
    "test_shutdown_deadlock_pickle": PIECES,
    "test_python_finalization_error": PIECES,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "it replaces parts of ProcessPoolExecutor",
    "test_max_tasks_per_child": "there is no max_tasks_per_child",
    "test_max_tasks_per_child_defaults_to_spawn_context": "there is no max_tasks_per_child",
    "test_max_tasks_early_shutdown": "there is no max_tasks_per_child",
    "test_exit_at_task_unpickle": ERRORS,
    "test_error_at_task_unpickle": ERRORS,
    "test_error_during_result_unpickle_in_result_handler": ERRORS,
    "test_exit_during_result_unpickle_in_result_handler": ERRORS,
    "test_error_during_result_pickle_on_worker": "the error for a result that cannot be pickled is SerializationError",
    "test_interpreter_shutdown": "the program imports ProcessPoolExecutor by name; test_executor.py has this test",
    "test_submit_after_interpreter_shutdown": "as test_interpreter_shutdown",
    "test_hang_gh83386": "as test_interpreter_shutdown",
}
# FailingInitializerMixin is excluded, too: the error of the initializer is the cause of BrokenProcessPool, and the worker
# does not log it.
PROGRAM = """
import importlib, sys, unittest
from test import support

import pyray_ser

EXCLUDED = {excluded!r}
support.use_resources = ["walltime", "cpu"]
NAMES = {{
    "test_process_pool": "ProcessPoolExecutorTest",
    "test_wait": "WaitTests",
    "test_as_completed": "AsCompletedTests",
    "test_shutdown": "ExecutorShutdownTest",
    "test_init": "InitializerMixin",
    "test_deadlock": "ExecutorDeadlockTest",
}}
suite = unittest.TestSuite()
loader = unittest.TestLoader()
for name, mixin in NAMES.items():
    module = importlib.import_module(f"test.test_concurrent_futures.{{name}}")
    util = importlib.import_module("test.test_concurrent_futures.util")

    class Mixin(util.ProcessPoolForkMixin):
        executor_type = pyray_ser.Executor
        # Some of these tests have time limits that leave no time for workers that start with an empty interpreter;
        # test_executor.py covers the other start methods.
        ctx = "fork"

    bases = (getattr(module, mixin), Mixin, util.BaseTestCase)
    made = type(f"Our{{mixin}}", bases, {{"__module__": module.__name__}})
    setattr(module, made.__name__, made)
    for test in loader.loadTestsFromTestCase(made):
        if test.id().rpartition(".")[2] not in EXCLUDED:
            suite.addTest(test)
if __name__ == "__main__":
    result = unittest.TextTestRunner(verbosity=2, stream=sys.stdout).run(suite)
    sys.exit(not result.wasSuccessful())
"""


@pytest.mark.heavy
def test_the_executor_passes_the_tests_of_cpython(tmp_path):
    spec = find_spec("test.test_concurrent_futures") if find_spec("test") else None
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("this interpreter was installed without the package test.test_concurrent_futures")
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(excluded=sorted(EXCLUDED)))
    done = subprocess.run(
        [sys.executable, "-P", str(path)],
        capture_output=True,
        text=True,
        timeout=patience(280),
        env=isolated.environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"^Ran (\d+) tests", done.stdout, re.MULTILINE)[1]) >= 30
