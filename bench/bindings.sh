#!/usr/bin/env bash
# `make bench-bindings`: builds with optimisation, measures with the testbed's Keycloak and Vault, prints the table. Words
# choose parts: binds sweep.
#
# Servers that do not run are started, and stopped again if this started them. Where they stand inside the node's network,
# what is measured and what measures run in there, too.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"

say "Building (the first time takes minutes) …"
program=$(cargo bench --locked --quiet --no-run --bench bindings --message-format json |
  jq -r 'select(.reason == "compiler-artifact" and .target.name == "bindings" and .executable != null) | .executable')
[ -x "$program" ] || die "the benchmark was not built"

started=()
stop() {
  local code=$? name
  trap - EXIT
  for name in "${started[@]}"; do
    "tests/testbed/servers/$name/server" down >/dev/null 2>&1 || true
  done
  exit $code
}
trap stop EXIT
# In a shell of its own: the names that the testbed's scripts use are not ours.
for name in keycloak vault; do
  running=$(source tests/testbed/lib.sh; [ ! -s "$RUN/env/20-$name" ] || echo yes)
  [ -n "$running" ] || started+=("$name")
done
exports=$(tests/testbed/up keycloak vault)
eval "$exports"
inside=()
[ -z "${CHANDLER_TESTBED_KEYCLOAK_URL_FOR_PODS:-}" ] || inside=(tests/testbed/enter)
"${inside[@]}" "$program" "$@"
