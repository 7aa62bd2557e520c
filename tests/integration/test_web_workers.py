"""Test that the programs in docs/how-to/web-workers.md share one object; plain processes replace the servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "web-workers.md"
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE))
APPLICATION, FOREST, LIFESPAN = FILES["app.py"], FILES["forest.py"], FILES["main.py"]

# Imitate gunicorn with preloading: import the application, fork, then call it.
MASTER = r"""
import os, pyray_ser, app

def serve():
    status = []
    body = app.app({}, lambda line, headers: status.append(line))
    stats = pyray_ser.stats()
    return f"{status[0]} {body[0].decode().strip()} objects={stats['objects']} clients>1={stats['clients'] > 1}"

for _ in range(3):
    if not os.fork():
        os.write(1, f"{serve()}\n".encode())  # one write, so that lines do not mix
        os._exit(0)
for _ in range(3):
    os.wait()
"""

# Imitate a worker of uvicorn: enter the lifespan, serve, leave the lifespan. The fake FastAPI only stores both
# functions.
FASTAPI = """
class FastAPI:
    def __init__(self, lifespan):
        self.lifespan, self.routes = lifespan, {}
    def get(self, path):
        return lambda function: self.routes.setdefault(path, function)
"""
WORKERS = r"""
import asyncio, multiprocessing, os, pyray_ser

def serve(barrier):
    import main
    async def run():
        async with main.app.lifespan(main.app):
            mean = main.app.routes["/mean"]()
            barrier.wait(60)  # each worker has the object
            stats = pyray_ser.stats()
            os.write(1, f"{mean} objects={stats['objects']} clients={stats['clients']}\n".encode())
            barrier.wait(60)
    asyncio.run(run())

if __name__ == "__main__":
    import numpy as np
    np.save("table.npy", np.arange(1001.0))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=serve, args=(barrier,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print([worker.exitcode for worker in workers], flush=True)
"""


def run(folder, script):
    (folder / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_workers_forked_from_a_preloaded_application_read_one_object(tmp_path):
    (tmp_path / "app.py").write_text(APPLICATION)
    assert run(tmp_path, MASTER) == ["200 OK 499999.5 objects=1 clients>1=True"] * 3


@pytest.mark.heavy
def test_workers_forked_from_a_preloaded_application_share_a_model(tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "app.py").write_text(FOREST)
    lines = run(tmp_path, MASTER)
    assert len(lines) == 3 and len(set(lines)) == 1
    assert re.fullmatch(r"200 OK 0\.\d+ objects=1 clients>1=True", lines[0])


def test_workers_of_a_named_store_read_one_object_and_the_last_removes_the_store(tmp_path):
    directory = Path(os.environ.get("PYRAY_SER_STORE_DIR") or f"/dev/shm/pyray_ser-{os.getuid()}")
    if (directory / "my-app").exists():
        pytest.skip("a store of this name is in use")
    (tmp_path / "main.py").write_text(LIFESPAN.replace('capacity="4G"', 'capacity="64M"'))
    (tmp_path / "fastapi.py").write_text(FASTAPI)
    assert run(tmp_path, WORKERS) == ["500.0 objects=1 clients=3"] * 3 + ["[0, 0, 0]"]
    assert not (directory / "my-app").exists()
