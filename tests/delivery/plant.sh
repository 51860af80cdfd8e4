#!/usr/bin/env bash
# Shows that the delivery tests can find bugs: plants each of tests/delivery/bugs/*.patch into a copy of the committed
# sources and runs them, which must fail; where the client library stands between broker and bug, the session's own tests
# (the same stories, told to it alone) must. Takes some ten minutes; needs nothing but git and cargo.
set -euo pipefail
cd "$(dirname "$0")/../.."
copy=target/planted/source
export CARGO_TARGET_DIR="$PWD/target/planted/build" # two trees in one directory would mix their artefacts
export RUST_BACKTRACE=0 # symbols are tens of MB, and one test looks at our memory
rm -rf "$copy"
mkdir -p target/planted
git clone -q . "$copy"
missed=0
for patch in "$PWD"/tests/delivery/bugs/*.patch; do
  name=$(basename "$patch" .patch)
  git -C "$copy" checkout -q .
  git -C "$copy" apply "$patch"
  log="target/planted/$name.log"
  found=""
  for tests in "--test delivery" "--lib publish"; do
    # shellcheck disable=SC2086 # two words each
    if ! (cd "$copy" && timeout 900 cargo test -q --locked $tests) >"$log" 2>&1; then
      found=$tests
      break
    fi
  done
  if [ -z "$found" ]; then
    printf '%s: NOT FOUND\n' "$name"
    missed=1
  elif grep -q '^test result: FAILED' "$log"; then
    printf '%s: cargo test %s\n' "$name" "$found"
    sed -n '/^failures:$/,$p' "$log" | sed -n 's/^    \([a-z_0-9:]*\)$/  \1/p' | sort -u
  else
    printf '%s: does not build, or hangs: see %s\n' "$name" "$log"
    missed=1
  fi
done
exit $missed
