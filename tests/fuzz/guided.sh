#!/bin/sh
# libFuzzer in a Python process (see guide.c):
#
#   guided.sh build FOLDER PYTHON                   make FOLDER/guide.so
#   guided.sh run FOLDER PYTHON CORPUS [OPTION...]  run run_guided_fuzz.py; FOLDER/site holds the package, compiled by clang
#                                                   with -fsanitize=fuzzer-no-link,address,undefined
#
# CLANG names the compiler. Its sanitizer and fuzzer runtimes are in Debian's libclang-rt-dev.

set -eu
action=$1 folder=$2 python=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
clang=${CLANG:-clang}

command -v "$clang" >/dev/null 2>&1 || {
    echo "missing: $clang. Debian: apt-get install clang libclang-rt-dev" >&2
    exit 1
}
runtime=$("$clang" -print-runtime-dir)
library() { # name; the files of older releases also have the processor in their names
    for file in "$runtime/libclang_rt.$1-$(uname -m).$2" "$runtime/libclang_rt.$1.$2"; do
        [ ! -e "$file" ] || { echo "$file"; return; }
    done
    echo "missing: clang's runtime $1. Debian: apt-get install libclang-rt-dev (of the version of clang)" >&2
    exit 1
}
fuzzer=$(library fuzzer_no_main a)
asan=$(library asan so)

case $action in
build)
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    exec "$clang" -shared -fPIC -O1 -g -Wall -Wextra -Wno-unused-parameter -fsanitize=address -shared-libasan -I"$include" \
        "$here/guide.c" -Wl,--whole-archive "$fuzzer" -Wl,--no-whole-archive -lstdc++ -lpthread -lm -o "$folder/guide.so"
    ;;
run)
    # Preload guide.so before the sanitizer: both define the functions that count coverage, but the sanitizer's are
    # empty. An allocation of more than 512 MB fails; only the standard library requests so much, if a length in the
    # stream says so.
    export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=512:verify_asan_link_order=0:handle_abort=0
    export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
    export PYTHONMALLOC=malloc PYTHONPATH="$folder/site:$here"
    LD_PRELOAD="$folder/guide.so $asan" exec "$python" -P "$here/run_guided_fuzz.py" "$folder/guide.so" "$@"
    ;;
*)
    sed -n 's/^# \{0,1\}//p' "$0" | head -n 6 >&2
    exit 2
    ;;
esac
