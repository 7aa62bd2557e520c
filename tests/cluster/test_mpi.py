"""Test messages with references between the ranks of an MPI program."""

import os
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import isolated
import pages
import pytest
from patience import patience

# Heavy, because only the environment of the heavy tests has mpi4py.
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(find_spec("mpi4py") is None, reason="mpi4py is not installed"),
]

_HEAD = """
import os
import numpy as np
import pyray_ser
from mpi4py import MPI
from pyray_ser.integrations.mpi4py import connect

rank = MPI.COMM_WORLD.rank


def other_host(ranks):
    # Another store stands for another host.
    if rank in ranks:
        pyray_ser.init("rank-of-another-host-" + os.environ["TEST_ID"], capacity="64M")


def kinds(ref):
    return ref.store_id == pyray_ser.init().id, float(pyray_ser.get(ref).sum())


def emptied(comm):
    import gc, time

    comm.Barrier()
    gc.collect()
    end = time.monotonic() + 20
    while (found := pyray_ser.stats())["objects"] or found["in_flight"]:
        assert time.monotonic() < end, found
        time.sleep(0.02)
    comm.Barrier()


expected = float(np.arange(500_000.0).sum())
"""
# Open MPI refuses to run as root, and more processes than cores, unless it is told so.
_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip


def run_ranks(count: int, path: Path) -> list[str]:
    """Run a program with `mpiexec` and return the lines of its output."""
    folders = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    launcher = shutil.which("mpiexec", path=folders)
    assert launcher, "mpi4py is installed, but there is no mpiexec in PATH"
    done = subprocess.run(
        [launcher, "-n", str(count), sys.executable, "-P", str(path)], text=True, capture_output=True,
        timeout=patience(60), env={**isolated.environment(), **_OPEN_MPI, "TEST_ID": str(os.getpid())}, cwd=path.parent,
    )  # fmt: skip
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


def run(count: int, script: str, folder: Path) -> None:
    """Run a script on each rank; each rank must reach a line that prints "done"."""
    path = folder / "ranks.py"
    path.write_text(_HEAD + textwrap.dedent(script))
    # The launcher may join the lines of the ranks.
    assert "".join(run_ranks(count, path)) == "done" * count


def test_ranks_of_a_host_share_objects(tmp_path):
    run(
        2,
        """
        comm = connect()
        other = 1 - rank
        assert comm.shares_store_with(other) and not comm.shares_store_with(2) and not comm.shares_store_with(-1)
        # One message, loaded once. The reference that occurs twice is one reference.
        ref = pyray_ser.put(np.arange(500_000.0))
        if rank == 0:
            comm.send({"ref": ref, "again": ref, "function": lambda x: x + 1}, 1)
        else:
            message = comm.recv(source=0)
            assert kinds(message["ref"]) == (True, expected) and message["again"] is message["ref"]
            assert message["ref"] != ref and message["function"](1) == 2
            del message
        request = comm.isend([ref], other, tag=5)
        received = comm.recv(source=other, tag=5)
        request.wait()
        assert kinds(received[0]) == (True, expected)
        assert comm.sendrecv(ref, other, source=other) == received[0]
        # Collective methods.
        assert comm.allgather(ref)[other] == received[0]
        assert comm.bcast(ref if rank == 1 else None, 1) == (ref if rank == 1 else received[0])
        assert comm.alltoall([ref, ref])[other] == received[0]
        assert pyray_ser.stats()["objects"] == 2 and pyray_ser.stats()["used"] < 9_000_000
        # Messages own no object after they were received.
        comm.Barrier()
        assert pyray_ser.stats()["in_flight"] == 0, pyray_ser.stats()
        # Plain values are as in mpi4py: arrays can be written to.
        array = comm.bcast(np.arange(10.0) if rank == 0 else None)
        array[0] = 5
        comm.Barrier()
        del ref, received, request
        emptied(comm)
        comm.Free()
        print("done")
        """,
        tmp_path,
    )


def test_other_hosts_get_objects_by_value_once(tmp_path):
    run(
        4,
        """
        other_host({1, 3})
        comm = connect()
        assert [comm.shares_store_with(one) for one in range(4)] == [one % 2 == rank % 2 for one in range(4)]
        for root in range(4):
            ref = comm.bcast(pyray_ser.put(np.arange(500_000.0)) if rank == root else None, root)
            assert kinds(ref) == (True, expected)
            comm.Barrier()
            found = pyray_ser.stats()
            assert found["objects"] == 1 and found["used"] < 5_000_000, (root, found)
            # All ranks of a host have the same object.
            assert len(set(comm._near.allgather(ref.hex()))) == 1
            del ref
            emptied(comm)
        ref = pyray_ser.put(np.arange(500_000.0))
        for to in (1, 2):
            got = comm.sendrecv([ref], (rank + to) % 4, source=(rank - to) % 4)
            assert kinds(got[0]) == (True, expected)
            comm.Barrier()
            # With to=1, each rank has its own object and a copy; with to=2, an object of its neighbour.
            assert pyray_ser.stats()["objects"] == (4 if to == 1 else 2), (to, pyray_ser.stats())
            comm.Barrier()
            del got
        gathered = comm.gather(ref)
        if rank == 0:
            assert [kinds(one) for one in gathered] == [(True, expected)] * 4
        duplicate = comm.Dup()
        assert kinds(duplicate.bcast(ref)) == (True, expected)
        duplicate.Free()
        del ref, gathered
        emptied(comm)
        print("done")
        """,
        tmp_path,
    )


def test_a_message_that_is_not_sent_holds_no_object(tmp_path):
    run(
        2,
        """
        comm = connect()
        ref = pyray_ser.put(np.arange(500_000.0))
        for bad in ([ref, open(os.devnull)], [ref, (one for one in ())]):
            try:
                comm.send(bad, 1 - rank)
            except TypeError:
                assert True
            else:
                raise AssertionError("a file was pickled")
        try:
            comm.send(ref, 7)
        except MPI.Exception:
            pass
        else:
            raise AssertionError("there is no rank 7")
        comm.Barrier()
        assert pyray_ser.stats()["in_flight"] == 0, pyray_ser.stats()
        pyray_ser.free(ref)
        try:
            comm.send(ref, 1 - rank)
        except pyray_ser.exceptions.ObjectFreedError:
            print("done")
        """,
        tmp_path,
    )


def test_all_ranks_learn_that_one_has_no_store(tmp_path):
    run(
        2,
        """
        from pyray_ser import api

        if rank == 1:
            os.environ["PYRAY_SER_STORE_DIR"] = "/proc/no-such-directory"
        try:
            connect()
        except RuntimeError as error:
            assert str(error).startswith("rank 1 cannot open a store: "), error
            print("done")
        """,
        tmp_path,
    )


def test_the_program_of_the_page_runs(tmp_path):
    [block] = [block for block in pages.python_blocks(pages.DOCS / "how-to" / "mpi.md") if block.file]
    path = tmp_path / block.file
    path.write_text(block.text)
    assert run_ranks(3, path) == ["3 ranks: 499999500000.0"]


def test_the_example_runs():
    [line] = run_ranks(2, pages.ROOT / "examples" / "mpi_ranks.py")
    assert line == "2 ranks: sum 12499997500000, 40 MB in the store"
