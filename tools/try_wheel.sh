#!/bin/sh
# Install a wheel in an environment without a compiler, and put and get one array with it.
#
#   tools/try_wheel.sh PYTHON VENV WHEEL

set -eu
python=$1 venv=$2 wheel=$3

rm -rf "$venv"
"$python" -m venv "$venv"
# The PATH is empty and the compiler fails, so the wheel cannot build anything.
env PATH="$venv/bin" CC=/bin/false "$venv/bin/python" -m pip --quiet install --only-binary :all: "$wheel"
cd /
"$venv/bin/python" -P - <<'PROGRAM'
import numpy as np
import pyray_ser

array = np.arange(100_000.0)
ref = pyray_ser.put({"array": array})
back = pyray_ser.get(ref)["array"]
assert not back.flags.writeable and (back == array).all()
pyray_ser.shutdown()
print("wheel:", pyray_ser.__version__, "installs without a compiler, puts and gets")
PROGRAM
rm -rf "$venv"
