#!/bin/sh
# Install another Debian system with its Python in a folder, for `make test-versions`.
#
#   tools/make_python_root.sh FOLDER SUITE [MIRROR]
#
# SUITE is a name such as trixie (Python 3.13) or sid (the newest version). Needs root and debootstrap. The folder holds
# the interpreter with its headers, its own test suite and a C compiler; `tools/in_root.sh` runs commands in it, and
#
#   make test-versions VERSIONS="python3.12 /srv/python/trixie /srv/python/sid"
#
# tests there as with any other interpreter.

set -eu
if [ $# -lt 2 ]; then
    sed -n 's/^# \{0,1\}//p' "$0" | head -n 4 >&2
    exit 2
fi
folder=$1 suite=$2 mirror=${3:-http://deb.debian.org/debian}

if ! command -v debootstrap >/dev/null 2>&1; then
    echo "missing: debootstrap. Debian: apt-get install debootstrap." >&2
    exit 1
fi
if [ ! -e "$folder/usr/bin/python3" ]; then
    debootstrap --variant=minbase --include=python3,python3-dev,python3-venv,gcc,libc6-dev,make,ca-certificates \
        "$suite" "$folder" "$mirror"
fi
# The name of the test suite's package contains the version.
version=$(chroot "$folder" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if ! chroot "$folder" python3 -c 'import test.pickletester' 2>/dev/null; then
    DEBIAN_FRONTEND=noninteractive chroot "$folder" apt-get install -y "libpython$version-testsuite"
fi
rm -rf "$folder"/var/cache/apt/archives/*.deb
echo "$folder: Python $(chroot "$folder" python3 -c 'import platform; print(platform.python_version())')"
