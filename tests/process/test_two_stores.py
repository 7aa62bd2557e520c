"""Test that workers log a message if their parent has no store: the end of a worker then loses the worker's objects."""

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
