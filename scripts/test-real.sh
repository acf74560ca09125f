#!/usr/bin/env bash
# Tests on what is not on every machine: a Kubernetes node with real pods, the chart on it, and servers that no Debian
# package brings.
#
#   make test-real                      starts the testbed (root), or uses it if it runs; stops only what it started
#   make test-real ARGS=flows::         some tests of the node, by the beginning of their names
#   CHANDLER_TEST_KUBECONFIG=… make test-real     the node's tests on another cluster, as its administrator
#
# The broker and the tests run inside the node's network, which has no way out.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

inside=()
# More at once do not fit: the node has the processors of this machine.
at_once=${CHANDLER_TEST_AT_ONCE:-4}
run() { "${inside[@]}" cargo test --locked --offline --test "$@"; }
on_the_node() {
  if [ $# -gt 0 ]; then
    run kubernetes -- --test-threads="$at_once" "$@"
  else
    run real -- --test-threads="$at_once" --ignored kubernetes::
    # A vault beside the node, which asks it about the tokens of its service accounts.
    [ -z "${VAULT_PLUGINS:-}" ] || run platform -- --ignored vault::cluster::
    run kubernetes -- --test-threads="$at_once" --skip alone::
    run kubernetes -- --test-threads=1 alone::
  fi
}

cargo test --locked --no-run --test kubernetes --test real --test platform
if [ -n "${CHANDLER_TEST_KUBECONFIG:-}" ]; then
  on_the_node "$@"
  exit 0
fi

[ "$(id -u)" = 0 ] || die "the testbed makes network namespaces and containers: run as root, or name a cluster in CHANDLER_TEST_KUBECONFIG"

# In shells of their own: the names that the testbed's scripts use are not ours.
ran_before=$(source tests/testbed/lib.sh; [ ! -s "$RUN/env/10-kubernetes" ] || echo yes)
started=()
stop() {
  local code=$? name
  trap - EXIT
  for name in "${started[@]}"; do
    "tests/testbed/servers/$name/server" down || true
  done
  [ -n "$ran_before" ] || tests/testbed/down || true
  exit $code
}
trap stop EXIT
exports=$(tests/testbed/up kubernetes)
eval "$exports"
inside=("${CHANDLER_TESTBED_ENTER:?}")
vault=$(tests/testbed/servers/vault/build)
export VAULT_BIN=$vault/vault VAULT_PLUGINS=$vault/plugins
on_the_node "$@"

# Somebody else may use a testbed that ran before.
if [ -z "$ran_before" ]; then
  kinds=all,pvc,secret,networkpolicy,configmap,serviceaccount,namespace
  left=$("${CHANDLER_TESTBED_KUBECTL:?}" get $kinds -A -l app.kubernetes.io/managed-by=chandler -o name)
  [ -z "$left" ] || die "left in the cluster: $left"
fi

[ $# = 0 ] || exit 0
MINIO_BIN=$(source tests/testbed/lib.sh && source tests/testbed/programs.sh && minio)
CASSANDRA_HOME=$(tests/testbed/servers/cassandra/distribution)
export MINIO_BIN CASSANDRA_HOME
tests/testbed/servers/couchdb/distribution >/dev/null
tests/platform/spring.sh >/dev/null
# Keycloak and Vault, of which tests use realms and mounts of their own, stand beside the node, so the tests do, too.
for name in keycloak vault; do
  running=$(source tests/testbed/lib.sh; [ ! -s "$RUN/env/20-$name" ] || echo yes)
  [ -n "$running" ] || started+=("$name")
done
exports=$(tests/testbed/up keycloak vault)
eval "$exports"
# The program the tests ran, not one built with optimisation: that would take minutes more and test the same.
CHANDLER=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/debug/chandler
export CHANDLER
tests/testbed/chart
run platform
run platform -- --ignored keycloak::
# The whole sentence with pods; `platform` has it with a local server.
scripts/demo-platform.sh
