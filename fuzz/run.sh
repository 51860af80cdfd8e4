#!/bin/sh
# Runs every fuzz target for SECONDS, one after the other with JOBS processes, and prints a table. Fails on a crash.
#   fuzz/run.sh SECONDS [JOBS] [TARGET...]
# What is found new goes to the corpus; `fuzz/run.sh cmin` makes that small again.
set -u
cd "$(dirname "$0")" || exit 2
usage="usage: fuzz/run.sh SECONDS [JOBS] [TARGET...] | fuzz/run.sh cmin"
seconds=${1:?$usage}
jobs=${2:-1}
# cargo-fuzz needs flags that are stable in all but name; no nightly toolchain is needed for the rest.
export RUSTC_BOOTSTRAP=1
# Without a sanitizer libFuzzer does not see an allocation before it is touched: the address space is the limit.
memory_mb=4096
host=$(rustc -vV | sed -n "s/^host: //p")
all=$(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' Cargo.toml)

cargo fuzz build --sanitizer none >&2 || exit 2
if [ "$seconds" = cmin ]; then
    for target in $all; do
        cargo fuzz cmin "$target" --sanitizer none >&2 || exit 2
    done
    exit 0
fi
if [ $# -gt 2 ]; then shift 2; targets=$*; else targets=$all; fi

dictionary() {
    case $1 in
    profile | config | meters_csv) echo -dict=toml.dict ;;
    payloads | record | seal | meta | index | proof) echo -dict=json.dict ;;
    esac
}

logs=$(mktemp -d) || exit 2
trap 'rm -rf "$logs"' EXIT
failed=0
printf '%-12s %14s %10s %9s %8s\n' target executions coverage features crashes
for target in $targets; do
    mkdir -p "corpus/$target" "artifacts/$target"
    before=$(find "artifacts/$target" -type f | wc -l)
    job=0
    while [ "$job" -lt "$jobs" ]; do
        (
            ulimit -v $((memory_mb * 1024))
            # The program itself, so that a source that changes meanwhile is not built in between.
            # shellcheck disable=SC2046 # no dictionary is no argument
            exec nice -n 10 "target/$host/release/$target" "corpus/$target" "-artifact_prefix=artifacts/$target/" \
                -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -max_len=16384 -print_final_stats=1 \
                -reload=1 $(dictionary "$target")
        ) >"$logs/$target.$job" 2>&1 &
        job=$((job + 1))
    done
    wait
    crashes=$(($(find "artifacts/$target" -type f | wc -l) - before))
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$target".* | awk '{n += $1} END {print n + 0}')
    last=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 \2/p' "$logs/$target".* | sort -n | tail -1)
    printf '%-12s %14s %10s %9s %8s\n' "$target" "$executions" "${last% *}" "${last#* }" "$crashes"
    if [ "$crashes" -gt 0 ] || [ "$executions" -eq 0 ]; then
        failed=1
        tail -n 40 "$logs/$target".* >&2
    fi
done
exit $failed
