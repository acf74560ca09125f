#!/usr/bin/env bash
# The main job on a real Kubernetes node: pods instead of processes, under the broker's own rights, nothing left.
#
# The testbed's node is started if it does not run, and stopped again if this started it. The broker and everything that
# talks to it run inside the node's network, which has no way out of this machine.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/demo-node.sh"

start_node
printf '\n%schandler on Kubernetes: from an empty cluster to nothing left%s\n' "$bold" "$plain"

step "Give the broker a user of its own, with exactly the rights it needs"
configure </dev/null
give_rights
tell "may it create namespaces? $(may create namespaces)    list secrets? $(may list secrets -A)    run commands in pods? $(may create pods --subresource=exec -A)"
good "no wildcard, no secrets list, no exec"

step "Start the broker outside the cluster"
start_broker
good "ready; it reaches instances through the API server"
short() { sed -E 's#(://[^:]+:)([^@]{4})[^@]*@#\1\2…@#' <<<"$1"; }

step "Read the catalog"
choose_postgres
jq -r '.services[] | "   \(.name | . + " " * (12 - length))\(.plans | map(.name) | join(", "))"' <<<"$body"
good "what the cluster can run; clusters of PostgreSQL come with the CloudNativePG operator"

step "Two namespaces with a pod each: one that may use it, one that may not"
for namespace in shop stranger; do
  "$kubectl" create namespace "$namespace" >/dev/null
  "$kubectl" label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
  "$kubectl" apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: $namespace}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: app
      image: $tools
      imagePullPolicy: IfNotPresent
      command: [sleep, "3600"]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
YAML
done
"$kubectl" label namespace shop chandler.osb/consumer=true >/dev/null
for namespace in shop stranger; do "$kubectl" -n "$namespace" wait --for=condition=Ready pod/app --timeout=90s >/dev/null; done
good "shop carries the label chandler.osb/consumer=true, stranger does not"

step "Ask for a PostgreSQL, size small"
create_database
"$kubectl" -n "$home" get statefulset,pod,pvc,service,networkpolicy,resourcequota --no-headers -o name | sed 's/^/   /'
good "a real PostgreSQL in a namespace of its own: $home"

bind() { # NAME BODY: sets $uri
  osb PUT "/v2/service_instances/shop-db/service_bindings/$1" "$2"
  want 201
  uri=$(jq -r .credentials.uri <<<"$body")
}
# In the pod of a namespace, as an application would.
run_sql() { "$kubectl" -n "$1" exec app -- env PGCONNECT_TIMEOUT=5 psql "$2" -qtAX -v ON_ERROR_STOP=1 -c "$3"; }

step "Bind an application and use it from its pod"
bind web "{\"service_id\":\"$service\",\"plan_id\":\"$plan\"}"
web=$uri
tell "$(short "$web")"
run_sql shop "$web" "CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders VALUES (1, 'rope'), (2, 'tar')"
tell "orders: $(run_sql shop "$web" "SELECT string_agg(what, ', ' ORDER BY id) FROM orders")"
good "written and read from another namespace"

step "The same credentials from a namespace that is not admitted"
if refusal=$(run_sql stranger "$web" 'SELECT 1' 2>&1); then die "a stranger got in"; fi
tell "psql: $(grep -o 'timeout expired\|could not connect.*\|Connection refused\|Is the server running.*' <<<"$refusal" | head -n 1)"
good "the network does not let it through"

step "Rotate: a second credential beside the first, then the first is revoked"
bind web-2 '{"predecessor_binding_id":"web"}'
web2=$uri
run_sql shop "$web" 'SELECT 1' >/dev/null
run_sql shop "$web2" "INSERT INTO orders VALUES (3, 'lamp oil')"
osb DELETE "/v2/service_instances/shop-db/service_bindings/web?$ids"
want 200
if refusal=$(run_sql shop "$web" 'SELECT 1' 2>&1); then die "the old credential still works"; fi
tell "old: $(grep -o 'FATAL.*\|role .*' <<<"$refusal" | head -n 1)"
tell "new: $(run_sql shop "$web2" "SELECT string_agg(what, ', ' ORDER BY id) FROM orders")"
good "no moment without a valid credential"

step "Update a setting: the pod is replaced, the data stays"
osb PATCH '/v2/service_instances/shop-db?accepts_incomplete=true' \
  "{\"service_id\":\"$service\",\"parameters\":{\"max_connections\":50}}"
want 202
wait_for shop-db
tell "max_connections is $(run_sql shop "$web2" 'SHOW max_connections'), orders: $(run_sql shop "$web2" 'SELECT count(*) FROM orders')"
good "updated"

step "Unbind and delete"
osb DELETE "/v2/service_instances/shop-db/service_bindings/web-2?$ids"
want 200
osb DELETE "/v2/service_instances/shop-db?accepts_incomplete=true&$ids"
want 202
wait_for shop-db
good "deleted"

step "Look for what is left"
count_cluster
[ "$left" = 0 ] || die "something was left behind"
good "nothing is left"

stop_broker
done_telling
cat <<NEXT

What to try next
   tests/testbed/up            start the node and keep it; tests/testbed/down stops it
   docs/kubernetes.md          your own cluster: rights, tenancy, private registry, storage, mesh
   charts/chandler             the broker in the cluster
NEXT
