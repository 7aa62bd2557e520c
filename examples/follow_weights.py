"""A learner publishes its weights; actors in other processes follow the newest version, each at its own speed."""

import multiprocessing
import time

import numpy as np

import pyray_ser

VERSIONS, ACTORS = 60, 3


def act(number, results):
    versions = 0
    for weights in pyray_ser.watch("weights", timeout=60):
        # A version is never mixed with another one.
        assert weights["bias"][0] == weights["bias"][-1] == weights["step"]
        versions += 1
        time.sleep(0.002 * number)  # some actors are slower
        if weights["step"] == VERSIONS:
            break
    results.put((number, versions))


def main():
    pyray_ser.init()
    results = multiprocessing.Queue()
    actors = [multiprocessing.Process(target=act, args=(number, results)) for number in range(1, ACTORS + 1)]
    for actor in actors:
        actor.start()
    for step in range(1, VERSIONS + 1):
        weights = {"step": step, "bias": np.full(250_000, float(step))}  # 2 MB
        pyray_ser.put(weights, name="weights", replace=True)
        time.sleep(0.005)
    for number, versions in sorted(results.get() for _ in actors):
        print(f"actor {number} used {versions} of {VERSIONS} versions, the last one among them")
    for actor in actors:
        actor.join()
    print(f"in the store: {pyray_ser.stats()['objects']} version, {pyray_ser.stats()['used'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
