"""Test that the undocumented names of distributed are as the package expects."""

from importlib.util import find_spec

import isolated
import pytest

# Importing distributed would change how the test process pickles exceptions.
pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")


def test_the_installed_distributed_is_known():
    found = isolated.run("""
        from pyray_ser.distributed import private_names
        print("\\n".join(private_names.problems()))
    """)
    assert not found, f"change pyray_ser/distributed/private_names.py, and what uses these names:\n{found}"


def test_each_difference_is_named():
    found = isolated.run("""
        import distributed
        from distributed.comm.tcp import TLSListener
        from distributed.core import ConnectionPool
        from pyray_ser.distributed import private_names

        def get_data(self, comm, keys, who=None): ...
        distributed.Worker.get_data = get_data
        del TLSListener.comm_class, ConnectionPool.reuse
        distributed.__version__ = "2024.12.1"
        print("\\n".join(private_names.problems()))
    """).splitlines()
    assert "distributed 2024.12.1 is older than 2025.1" in found
    assert (
        "distributed.worker:Worker.get_data takes (self comm keys who), not (self comm keys who serializers)" in found
    )
    assert any(line.startswith("distributed.comm.tcp:TLSListener has no attribute 'comm_class'") for line in found)
    assert any(line.startswith("distributed.core:ConnectionPool.reuse is missing") for line in found)
    assert len(found) == 4, found


def test_the_package_does_not_import_distributed():
    isolated.run("""
        import sys
        import pyray_ser, pyray_ser.tasks, pyray_ser.pool_hooks, pyray_ser.cli, pyray_ser.metrics
        import pyray_ser.distributed
        assert "distributed" not in sys.modules and "dask" not in sys.modules
        assert pyray_ser.distributed.enable.__doc__
    """)
