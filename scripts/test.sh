#!/usr/bin/env bash
# All tests of `make test`. Those of faults mostly wait for one broker that is killed again and again: they run beside the
# others, and what they said is told at the end.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cargo test --locked --no-run
log=$(mktemp)
cargo test --locked --test faults >"$log" 2>&1 &
faults=$!
trap 'kill $faults 2>/dev/null || true; rm -f "$log"' EXIT
code=0
cargo test --locked --lib --bins --test it --test real || code=$?
cargo test --locked --doc || code=$?
wait $faults || code=$?
trap 'rm -f "$log"' EXIT
cat "$log"
[ $code = 0 ] || exit $code
scripts/api-check.sh
