"""Test the messages about workers whose parent has no store: the end of a worker then loses the worker's objects."""

import pytest
from isolated import run

SCRIPT = """
    import logging, multiprocessing, pyray_ser
    from pyray_ser.store import discovery
    discovery._ancestors = lambda pid: iter(())  # whoever runs the tests may have a store
    class Keeper(logging.Handler):
        def __init__(self):
            super().__init__()
            self.kept = []
        def emit(self, record):
            self.kept.append(record.getMessage())
    def work(queue):
        keeper = Keeper()
        logging.getLogger("pyray_ser").addHandler(keeper)
        logging.getLogger("pyray_ser").setLevel(logging.INFO)
        {call}
        queue.put(keeper.kept)
    if __name__ == "__main__":
        {first}
        context = multiprocessing.get_context({method!r})
        queue = context.Queue()
        process = context.Process(target=work, args=(queue,))
        process.start()
        kept = queue.get()
        process.join()
        assert {test}, kept
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_makes_a_store_of_its_own_says_so(method):
    test = "len(kept) == 1 and 'made a store of its own' in kept[0] and 'hint: call init() there' in kept[0]"
    run(SCRIPT.format(call="pyray_ser.put(1)", first="pass", method=method, test=test))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_joins_its_parents_store_is_silent(method):
    run(SCRIPT.format(call="pyray_ser.put(1)", first="pyray_ser.init()", method=method, test="kept == []"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_shares_names_with_nobody_warns(method):
    test = "len(kept) == 2 and 'shares names and cached results with no other process' in kept[1]"
    run(SCRIPT.format(call="pyray_ser.get_or_put('value', int)", first="pass", method=method, test=test))
    run(
        SCRIPT.format(
            call="pyray_ser.get_or_put('value', int)", first="pyray_ser.init()", method=method, test="kept == []"
        )
    )


PARENT = """
    import logging, multiprocessing, pyray_ser
    from concurrent.futures import ProcessPoolExecutor
    {prepare}
    class Keeper(logging.Handler):
        kept = []
        def emit(self, record):
            self.kept.append(record.getMessage())
    def work(number):
        return {result}
    if __name__ == "__main__":
        {first}
        logging.getLogger("pyray_ser").addHandler(Keeper())
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context({method!r})) as pool:
            found = list(pool.map(work, range(4)))
            assert {test}, found
        told = [message for message in Keeper.kept if "into a new store, because process" in message]
        assert len(told) == {times}, told
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_parent_without_a_store_is_told_once_that_its_workers_have_other_stores(method):
    test = "[pyray_ser.get(ref) for ref in found] == [0, 1, 2, 3]"
    options = {"result": "pyray_ser.put(number)", "method": method, "test": test}
    # The process that runs the tests may have a store, which the workers would find.
    alone = "from pyray_ser.store import discovery; discovery._inherited = lambda options: None"
    run(PARENT.format(prepare=alone, first="pass", times=1, **options))
    run(PARENT.format(prepare="", first="pyray_ser.init()", times=0, **options))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_parent_with_install_hears_nothing_of_its_workers_stores(method):
    test = "[int(value[-1]) for value in found] == [0, 1, 2, 3]"
    prepare, result = "import numpy; pyray_ser.install()", "numpy.full(1_000_000, number)"
    run(PARENT.format(prepare=prepare, result=result, first="pass", times=0, method=method, test=test))
