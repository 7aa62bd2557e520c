"""Make an array inside the store and fill it in place, without a copy."""

import numpy as np

import pyray_ser


def main():
    image = pyray_ser.empty((2000, 3000), np.float32)  # writable, in shared memory, not visible to other processes yet
    rows = np.linspace(-1, 1, image.shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, image.shape[1], dtype=np.float32)
    np.hypot(rows, columns, out=image)
    ref = pyray_ser.seal(image)  # make it an object, without copying a byte

    print(f"{ref}: {ref.size / 1e6:.0f} MB, centre {pyray_ser.get(ref)[1000, 1500]:.4f}")
    try:
        image[0, 0] = 0
    except ValueError as error:
        print(f"the writer's own array is read-only now: {error}")
    else:
        raise AssertionError("a sealed object was written to")


if __name__ == "__main__":
    main()
