#!/bin/sh
# Report in one line which packages of the distribution are missing, before anything is built.
#
#   tools/check_prerequisites.sh [PYTHON]
#
# Looks for Python >= 3.11, its headers, venv with ensurepip, and a C compiler with the headers of libc.
# The script uses only plain sh, so that it can report a missing Python.

python=${1:-python3}
debian=''
fedora=''
reasons=''

missing() { # reason, Debian package, Fedora package
    reasons="${reasons:+$reasons, }$1"
    debian="${debian:+$debian }$2"
    fedora="${fedora:+$fedora }$3"
}

# python3.12 needs python3.12-dev, plain python3 needs python3-dev.
base=${python##*/}
case $base in
    python3.[0-9]*) deb=$base fed=$base ;;
    *) deb=python3 fed=python3 ;;
esac

if ! command -v "$python" >/dev/null 2>&1; then
    missing "no $python" "$deb $deb-dev $deb-venv" "$fed $fed-devel"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
    missing "$python is ${version:-unusable} and 3.11 is needed (make PYTHON=python3.11 names another one)" \
        "python3.11 python3.11-dev python3.11-venv" "python3.11 python3.11-devel"
else
    if ! "$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null; then
        missing "no Python.h for $python" "$deb-dev" "$fed-devel"
    fi
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        missing "no venv with ensurepip in $python" "$deb-venv" "$fed-libs"
    fi
fi

compiles() {
    printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' |
        $1 -x c -c -o /dev/null - >/dev/null 2>&1
}

# The compiler that the build will call: $CC, else the one with which this Python was built, else cc.
compiler=${CC:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC") or "cc")' 2>/dev/null)}
compiler=${compiler:-cc}
if ! compiles "$compiler"; then
    missing "no working C compiler (${compiler%% *})" "gcc libc6-dev" "gcc glibc-devel"
fi

if [ -n "$reasons" ]; then
    echo "missing: $reasons. Debian: apt-get install $debian. Fedora: dnf install $fedora." >&2
    exit 1
fi
