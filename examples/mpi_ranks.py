"""MPI ranks of one host read one table in place. Needs mpi4py; run it with: mpiexec -n 4 python mpi_ranks.py"""

import numpy as np
from mpi4py import MPI

import pyray_ser
from pyray_ser.integrations.mpi4py import connect


def main():
    comm = connect(MPI.COMM_WORLD)
    ref = None
    if comm.rank == 0:
        ref = pyray_ser.put(np.arange(5_000_000.0).reshape(1000, 5000))  # 40 MB, once for each host
    table = pyray_ser.get(comm.bcast(ref))
    mine = table[comm.rank :: comm.size]  # rows of this rank, without a copy
    total = comm.reduce(float(mine.sum()))
    if comm.rank == 0:
        print(f"{comm.size} ranks: sum {total:.0f}, {pyray_ser.stats()['used'] / 1e6:.0f} MB in the store")


if __name__ == "__main__":
    main()
