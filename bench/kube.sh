#!/usr/bin/env bash
# `make bench-kube`: builds with optimisation, measures against the testbed's node, prints the table. Words choose parts:
# provisions fleet.
#
# The node is started if it does not run, and stopped again if this started it. What is measured and what measures run
# inside the node's network, which has no way out of this machine.
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/common.sh"

say "Building (the first time takes minutes) …"
program=$(cargo bench --locked --quiet --no-run --bench kube --message-format json |
  jq -r 'select(.reason == "compiler-artifact" and .target.name == "kube" and .executable != null) | .executable')
[ -x "$program" ] || die "the benchmark was not built"

if [ ! -e /run/netns/chandler-testbed ]; then
  say "Starting the Kubernetes node (the first time builds it, which takes minutes) …"
  trap 'tests/testbed/down >/dev/null 2>&1 || true' EXIT
  tests/testbed/up kubernetes >/dev/null
fi
tests/testbed/enter "$program" "$@"
