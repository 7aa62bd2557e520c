"""Compare DataLoader workers that share one data set in the store with workers that each have a copy. Needs torch."""

import os

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import pyray_ser

COUNT, SIDE, WORKERS = 800, 256, 2


class Copied(Dataset):
    """A data set that holds the images: each worker gets a copy of all images."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return torch.tensor(self.images[index])


class Shared(Copied):
    """A data set that holds a reference: the workers read the images in the store."""

    def __init__(self, ref):
        self.ref = ref

    @property
    def images(self):
        return pyray_ser.get(self.ref)  # no copy; takes less than a microsecond


def memory():
    """Return the sum of the proportional set sizes of this process and its children; shared pages count once."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        pids = [os.getpid(), *map(int, file.read().split())]
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return total


def epoch(dataset):
    loader = DataLoader(dataset, batch_size=16, num_workers=WORKERS, multiprocessing_context="spawn")
    total, used = 0.0, 0
    for number, batch in enumerate(loader):
        total += float(batch.mean())
        if number == COUNT // 16 - 1:  # all workers have read all pages
            used = memory()
    return total, used


def main():
    images = np.random.default_rng(1).random((COUNT, SIDE, SIDE), dtype=np.float32)
    copied, with_copies = epoch(Copied(images))
    ref = pyray_ser.put(images)
    nbytes = images.nbytes
    del images
    shared, in_store = epoch(Shared(ref))
    assert abs(copied - shared) < 1e-3 * abs(copied)
    print(f"{nbytes / 1e6:.0f} MB, {WORKERS} workers: {with_copies / 1e6:.0f} MB with a copy for each, "
          f"{in_store / 1e6:.0f} MB with one in the store")  # fmt: skip


if __name__ == "__main__":
    main()
