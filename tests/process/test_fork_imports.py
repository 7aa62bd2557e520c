"""Test that a forked child can import modules of this package that another thread was importing at the time of the fork."""

from __future__ import annotations

import pytest
from isolated import run

# The other thread begins its import in the hook `begin`, and is stopped in the middle. The hook is registered before the
# package is imported, so it runs after the package's own hook has waited for imports.
HEAD = """
    import importlib, os, signal, sys, threading
    from importlib import _bootstrap
    from importlib.machinery import PathFinder

    entered, go = threading.Event(), threading.Event()
    parent, target = os.getpid(), None

    def stop():
        if os.getpid() == parent:
            entered.set()
            go.wait()

    class Finder:
        def __init__(self, name, where):
            self.name, self.where = name, where
            sys.meta_path.insert(0, self)

        def find_spec(self, name, path=None, target=None):
            if name != self.name:
                return None
            spec = PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module
            def create_module(spec):
                if self.where == "create":
                    stop()
            def exec_module(module):
                if self.where == "begin":
                    stop()
                execute(module)
                if self.where == "end":
                    stop()
            spec.loader.create_module, spec.loader.exec_module = create_module, exec_module
            return spec

    def begin():
        global target, thread
        if target is not None:
            thread = threading.Thread(target=target, daemon=True)
            target = None
            thread.start()
            entered.wait()

    def child_of_fork(check):
        "Fork, return what the child prints, and let the other thread go on."
        sys.stdout.flush()
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(20)
                check()
                sys.stdout.flush()
                status = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(status)
        go.set()
        status = os.waitpid(child, 0)[1]
        assert status != signal.SIGALRM, "the child waited forever"
        assert status == 0, f"the child ended with status {status}"
        thread.join()

    os.register_at_fork(before=begin)
    import pyray_ser
"""


@pytest.mark.parametrize("where", ["create", "begin", "end"])
def test_a_forked_child_imports_a_module_that_another_thread_was_importing(where):
    script = f"""
    import pyray_ser.tasks
    def check():
        import pyray_ser.tasks.progress
        print(pyray_ser.tasks.progress.progress is pyray_ser.progress)

    Finder("pyray_ser.tasks.progress", "{where}")
    target = lambda: importlib.import_module("pyray_ser.tasks.progress")
    child_of_fork(check)
    check()
    """
    assert run(HEAD + script) == "True\nTrue"


def test_a_forked_child_completes_an_import_that_lacked_only_the_attribute():
    script = """
    import pyray_ser.tasks, types
    class Package(types.ModuleType):
        def __setattr__(self, name, value):
            stop()
            super().__setattr__(name, value)

    pyray_ser.tasks.__class__ = Package
    def check():
        module = sys.modules["pyray_ser.tasks.progress"]
        import pyray_ser.tasks.progress
        print(pyray_ser.tasks.progress is module)

    target = lambda: importlib.import_module("pyray_ser.tasks.progress")
    child_of_fork(check)
    check()
    """
    assert run(HEAD + script) == "True\nTrue"


def test_a_forked_child_imports_a_module_whose_lock_another_thread_was_acquiring():
    script = """
    import pyray_ser.tasks
    def acquire():
        lock = _bootstrap._get_module_lock("pyray_ser.tasks.progress")
        with lock.lock:  # as `_ModuleLock.acquire` does
            stop()
    def check():
        import pyray_ser.tasks.progress
        print(pyray_ser.tasks.progress.progress is pyray_ser.progress)

    target = acquire
    child_of_fork(check)
    check()
    """
    assert run(HEAD + script) == "True\nTrue"


def test_a_forked_child_runs_tasks_although_another_thread_was_importing_their_package():
    script = """
    if __name__ == "__main__":
        def check():
            pyray_ser.init(num_workers=1, start_method="fork")
            print(pyray_ser.get(pyray_ser.remote(abs).remote(-1)), hasattr(pyray_ser.tasks, "refs"))
            pyray_ser.shutdown()

        Finder("pyray_ser.tasks.refs", "begin")
        target = lambda: importlib.import_module("pyray_ser.tasks")
        child_of_fork(check)
        check()
    """
    assert run(HEAD + script) == "1 True\n1 True"


def test_a_forked_child_refuses_a_compiled_module_that_another_thread_was_initializing():
    script = """
    def check():
        for _ in range(2):
            try:
                import pyray_ser._walk
            except ImportError as error:
                print(error, error.name)
        import pyray_ser.tasks.progress  # other modules are not refused

    sys.modules.pop("bisect", None)
    Finder("bisect", "begin")  # `_walk` imports it while it is initialized
    target = lambda: importlib.import_module("pyray_ser._walk")
    child_of_fork(check)
    from pyray_ser._walk import instance_dict  # in the parent, the import went on
    """
    message = (
        "cannot import pyray_ser._walk: another thread was initializing this compiled module when the process forked. "
        "Hint: import it before other threads start. pyray_ser._walk"
    )
    assert run(HEAD + script) == f"{message}\n{message}"


def test_a_fork_in_the_middle_of_an_import_keeps_this_import():
    script = """
    import pyray_ser.tasks
    class Forks:
        def exec_module(self, module):
            self.exec_module = loader.exec_module
            global child
            child = os.fork()
            loader.exec_module(module)
        def __getattr__(self, name):
            return getattr(loader, name)
    class ForkingFinder:
        def find_spec(self, name, path=None, target=None):
            if name == "pyray_ser.tasks.progress":
                global loader
                spec = PathFinder.find_spec(name, path)
                loader, spec.loader = spec.loader, Forks()
                return spec

    sys.meta_path.insert(0, ForkingFinder())
    import pyray_ser.tasks.progress
    if not child:
        print(sys.modules["pyray_ser.tasks.progress"] is pyray_ser.tasks.progress, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
    assert run(HEAD + script) == "True"


@pytest.mark.parametrize("where", ["create", "begin", "end"])
def test_a_fork_waits_for_imports_of_other_threads(where):
    script = f"""
    import pyray_ser.tasks
    def check():
        print(hasattr(pyray_ser.tasks, "progress"))

    Finder("pyray_ser.tasks.progress", "{where}")
    thread = threading.Thread(target=lambda: importlib.import_module("pyray_ser.tasks.progress"))
    thread.start()
    entered.wait()
    timer = threading.Timer(0.2, go.set)
    timer.start()
    child_of_fork(check)
    """
    assert run(HEAD + script) == "True"


def test_a_fork_does_not_wait_forever_for_an_import_that_waits_for_the_fork():
    script = """
    # The hook of `logging` acquires its lock before the package's hook waits for the other thread, which needs the lock.
    assert "logging" not in sys.modules
    def locked():
        if entered.is_set():
            go.set()
    os.register_at_fork(before=locked)
    import logging
    pyray_ser._fork._LIMIT = 0.2

    def stop():
        if os.getpid() == parent:
            entered.set()
            go.wait()
            logging.getLogger("of the other thread")

    Finder("pyray_ser.inspection", "begin")
    def check():
        import pyray_ser.inspection
        print(pyray_ser.inspection.__name__)

    thread = threading.Thread(target=lambda: importlib.import_module("pyray_ser.inspection"))
    thread.start()
    entered.wait()
    child_of_fork(check)
    check()
    """
    assert run(HEAD + script) == "pyray_ser.inspection\npyray_ser.inspection"
