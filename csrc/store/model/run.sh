#!/bin/sh
# run.sh [FOLDER]: explore the models exhaustively. Each planted error must be found; the protocols must have no errors.
#
# Prints a line per run: model, options, expected result, states, seconds. Exits with 1 if a result is not as expected, 77 if
# spin is not installed. A run that takes longer than MODEL_LIMIT seconds is stopped and counts as failed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$(mktemp -d)}
command -v spin >/dev/null || { echo "model: spin is not installed (Debian: apt-get install spin)" >&2; exit 77; }
mkdir -p "$work" && cd "$work" || exit 1
failed=0

explore() { # error|none, model, options...
    want=$1 model=$2
    shift 2
    rm -f pan pan.* out
    spin "$@" -a "$here/$model.pml" >out 2>&1 || { cat out; failed=1; return; }
    level=-O0 # finding an error takes less time than optimizing the program
    [ "$want" = none ] && level=-O2
    # shellcheck disable=SC2086
    ${CC:-cc} $level -w -DSAFETY -DCOLLAPSE -DMEMLIM=${MODEL_MEMORY:-6000} -DVECTORSZ=2048 -o pan pan.c || { failed=1; return; }
    start=$(date +%s)
    timeout "${MODEL_LIMIT:-900}" ./pan -E -m200000 -n >out 2>&1
    took=$(($(date +%s) - start))
    states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' out)
    errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' out)
    if grep -q 'max search depth too small\|out of memory' out; then errors=; fi
    verdict=ok
    case $want/$errors in
    none/0) ;;
    error/[1-9]*) ;;
    *) verdict=WRONG failed=1 ;;
    esac
    echo "$verdict  $model $*: wanted ${want} found ${errors:-no answer}, ${states:-?} states, $took s"
}

for bug in NO_RECHECK STATE_INCARNATION LOCK_INCARNATION NO_BYTE FREE_FIRST; do # these allow two deaths
    explore error client -DLIVES=1 "-DBUG_$bug"
done
for bug in CLEAR_NO_SCAN LOAD_BEFORE_SET NO_ROLLBACK_SCAN NO_HELD BLIND_RETIRE TOKEN_AFTER; do
    explore error slot -DCLIENTS=2 -DDEATHS=0 -DSTEPS=2 "-DBUG_$bug"
done
explore error slot -DCLIENTS=2 -DDEATHS=1 -DSTEPS=2 -DBUG_REAP_BITS_ONLY
explore error slot -DCLIENTS=2 -DDEATHS=0 -DSTEPS=2 -DSTEPS_FIRST=3 -DONLY_RESERVES -DBUG_NO_GENERATION
explore error slot -DCLIENTS=2 -DDEATHS=0 -DSTEPS=3 -DSTEPS_FIRST=4 -DONLY_MESSAGES -DOLD_MESSAGES -DBUG_TOKEN_TWICE
explore error slot -DCLIENTS=2 -DDEATHS=0 -DSTEPS=2 -DSTEPS_FIRST=4 -DONLY_MESSAGES -DWITH_READS -DBUG_UNDO_WRONG
for bug in NO_INSIST LATE_COPY NO_BYTE KEEPS_FD OWN_FD; do
    explore error fork "-DBUG_$bug"
done
for bug in CLEAR_FIRST SERIAL_FIRST LATE_LINK NO_SETTLE NO_SWEEP; do
    explore error name "-DBUG_$bug"
done
explore none name
explore none fork
explore none client -DLIVES=1 -DDEATHS=1
explore none slot -DCLIENTS=3 -DDEATHS=1 -DSTEPS=1
explore none slot -DCLIENTS=2 -DDEATHS=2 -DSTEPS=2
[ $failed -eq 0 ] && echo "model: all as it should be"
exit $failed
