#!/usr/bin/env bash
# Shows that the simulation can find bugs: plants each of tests/simulation/bugs/*.patch into a copy of the committed
# sources and runs up to 100 seeds (or those that its line "Seeds: " names), of which one must fail. Takes some twenty
# minutes; needs nothing but git and cargo.
#   tests/simulation/plant.sh [NAME...]
set -euo pipefail
cd "$(dirname "$0")/../.."
copy=target/planted/source
export CARGO_TARGET_DIR="$PWD/target/planted/build" # two trees in one directory would mix their artefacts
rm -rf "$copy"
mkdir -p target/planted
git clone -q . "$copy"
missed=0
names=("$@")
if [ $# -eq 0 ]; then
  for patch in tests/simulation/bugs/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi
for name in "${names[@]}"; do
  patch="$PWD/tests/simulation/bugs/$name.patch"
  git -C "$copy" checkout -q .
  git -C "$copy" apply "$patch"
  log="target/planted/$name.log"
  seeds=$(sed -n 's/^Seeds: *//p' "$patch")
  if (cd "$copy" && SEEDS=${seeds:-1..101} UNTIL_ONE_FAILS=1 RUST_BACKTRACE=0 timeout 900 cargo test -q --release --locked --test simulation many_seeds -- --ignored) >"$log" 2>&1; then
    printf '%-42s NOT FOUND\n' "$name"
    missed=1
  elif grep -q '^seed [0-9]*: ' "$log"; then
    printf '%-42s %s\n' "$name" "$(grep -A1 '^seed [0-9]*: ' "$log" | head -2 | tr '\n' ' ')"
  else
    printf '%-42s does not build: see %s\n' "$name" "$log"
    missed=1
  fi
done
exit $missed
