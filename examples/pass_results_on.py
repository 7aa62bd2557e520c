"""Workers pass large results to each other as references: the parent never reads the bytes."""

from concurrent.futures import ProcessPoolExecutor

import numpy as np

import pyray_ser


def simulate(seed):
    walk = np.random.default_rng(seed).standard_normal(500_000).cumsum()
    return pyray_ser.put({"seed": seed, "walk": walk})


def extremes(ref):
    result = pyray_ser.get(ref)
    return result["seed"], float(result["walk"].min()), float(result["walk"].max())


def main():
    pyray_ser.init()  # before the workers start: they share this store
    with ProcessPoolExecutor(3) as pool:
        refs = list(pool.map(simulate, range(6)))  # each reference has a few dozen bytes
        for seed, low, high in pool.map(extremes, refs):
            print(f"walk {seed}: {low:9.1f} to {high:9.1f}")
    stats = pyray_ser.stats()
    print(f"{stats['objects']} objects, {stats['used'] / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
