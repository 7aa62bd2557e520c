"""Four gunicorn workers that share one model, which one of them loads, measured. Needs gunicorn."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np

import pyray_ser

MODEL_SIZE, WORKERS = 10_000_000, 4  # 80 MB


def load_model():
    time.sleep(0.5)  # real models take longer
    return np.arange(float(MODEL_SIZE))


if os.environ.get("SHARED") == "1":
    pyray_ser.init(name=os.environ["STORE"], capacity="1G")
    model = pyray_ser.get_or_put("model", load_model)
elif os.environ.get("SHARED") == "0":
    model = load_model()


def app(environ, start_response):
    """Answer with the worker's pid and a number from the model."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {model[-1]}".encode()]


def memory(pids):
    """Return the sum of the proportional set sizes of processes; shared pages count once."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return total


def serve(shared, home):
    """Start gunicorn, send requests until all workers have answered; return seconds and bytes."""
    folder = os.path.dirname(os.path.abspath(__file__))
    environment = {**os.environ, "SHARED": str(int(shared)), "STORE": f"web-workers-{os.getpid()}"}
    environment["HOME"] = home  # for gunicorn's control socket
    options = ["--bind", "127.0.0.1:0", "--workers", str(WORKERS)]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *options, "web_workers:app"],
        env=environment,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    began = time.perf_counter()
    try:
        port = next(line.split("127.0.0.1:")[1].split()[0] for line in server.stderr if "Listening at" in line)
        pids = set()
        while len(pids) < WORKERS:
            assert server.poll() is None and time.perf_counter() < began + 60
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60) as answer:
                    pid, number = answer.read().decode().split()
            except OSError:  # a worker that has just started may reset a connection
                continue
            assert float(number) == MODEL_SIZE - 1
            pids.add(int(pid))
        return time.perf_counter() - began, memory(pids)
    finally:
        server.send_signal(signal.SIGTERM)
        messages = server.communicate()[1]
        if server.returncode:
            print(messages, file=sys.stderr)


def main():
    for shared in (False, True):
        with tempfile.TemporaryDirectory() as home:
            seconds, used = serve(shared, home)
        kind = "one model in the store" if shared else "a model for each worker"
        print(f"{kind}: {WORKERS} workers answered after {seconds:.1f} s and use {used / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
