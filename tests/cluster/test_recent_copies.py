"""Test the limits of the copies that a Dask worker keeps for its next tasks."""

from importlib.util import find_spec

import pytest
from dask_programs import run

# Importing distributed would change how the test process pickles exceptions.
pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")

_HEAD = """
        import asyncio, weakref
        import pyray_ser
        from pyray_ser.distributed.recent import Recent

        class Record:
            pass

        store = pyray_ser.init(capacity="64MB")
        record = weakref.ref(Record())

        def claims():
            return pyray_ser.stats()["objects"]

        def keep(recent, number, nbytes, record=record):
            recent.keep(number.to_bytes(8, "little"), pyray_ser.put(bytes(1000)), nbytes, record)
"""


def test_a_worker_keeps_few_copies_of_small_objects():
    run(
        _HEAD
        + """
        async def main():
            recent = Recent(store, 30)
            for number in range(1010):
                keep(recent, number, 10)
                assert claims() == min(number + 1, 1000)
            keep(recent, 1009, 10)  # used again
            assert claims() == 1000
            recent.clear()
            assert claims() == 0

        asyncio.run(main())
        """
    )


def test_a_worker_keeps_an_eighth_of_the_store_in_copies():
    run(
        _HEAD
        + """
        async def main():
            recent = Recent(store, 30)
            keep(recent, 0, 9_000_000)
            assert claims() == 0
            for number in range(10):
                keep(recent, number, 3_000_000)
                assert claims() == min(number + 1, 2)
            keep(recent, 10, 10)  # takes the room of none
            assert claims() == 3
            recent.clear()

        asyncio.run(main())
        """
    )


def test_a_copy_is_kept_for_a_while_after_its_last_use():
    run(
        _HEAD
        + """
        async def main():
            recent = Recent(store, 1)
            used = Record()
            keep(recent, 0, 10)
            keep(recent, 1, 10, weakref.ref(used))
            while claims() == 2:
                await asyncio.sleep(0.1)
            await asyncio.sleep(3)
            assert claims() == 1
            del used
            while claims():
                await asyncio.sleep(0.1)

        asyncio.run(main())
        """
    )
