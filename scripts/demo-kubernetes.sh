#!/usr/bin/env bash
# The main job on a real Kubernetes node: pods instead of processes, under the broker's own rights, nothing left.
#
# The testbed's node is started if it does not run, and stopped again if this started it. The broker and everything that
# talks to it run inside the node's network, which has no way out of this machine.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/telling.sh"

say "Building (the first time takes minutes) …"
cargo build --release --locked --quiet
target=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)
chandler=$target/release/chandler

say "Starting the Kubernetes node (the first time builds it, which takes minutes) …"
began_testbed=''
[ -e /run/netns/chandler-testbed ] || began_testbed=yes
exports=$(tests/testbed/up kubernetes)
eval "$exports"
kubectl=$CHANDLER_TESTBED_KUBECTL
inside() { tests/testbed/enter "$@"; }

room=$(mktemp -d -t chandler-demo.XXXXXX)
broker=''
remove_admission() { "$kubectl" delete --ignore-not-found --wait=false -f "$room/rights.yaml" >/dev/null 2>&1 || true; }
finish() {
  local code=$?
  trap - EXIT
  if [ -n "$broker" ] && kill "$broker" 2>/dev/null; then wait "$broker" 2>/dev/null || true; fi
  if [ "$code" != 0 ]; then
    say "The demo failed. The broker's last words:"
    tail -n 30 "$room/broker.log" >&2 || true
    [ -z "${home:-}" ] || "$kubectl" delete namespace "$home" --wait=false >/dev/null 2>&1 || true
  fi
  remove_admission
  "$kubectl" delete namespace chandler-demo shop stranger --ignore-not-found --wait=false >/dev/null 2>&1 || true
  rm -rf "$room"
  [ -z "$began_testbed" ] || tests/testbed/down >/dev/null 2>&1 || true
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

began=$(date +%s%N)
printf '\n%schandler on Kubernetes: from an empty cluster to nothing left%s\n' "$bold" "$plain"

step "Give the broker a user of its own, with exactly the rights it needs"
password=$(openssl rand -hex 24)
(umask 077 && printf '%s' "$password" >"$room/password")
"$chandler" secrets new-key "$room/seal.key" >/dev/null
{
  cat <<YAML
http: {listen: "127.0.0.1:8089"}
store: {url: "sqlite://$room/chandler.db"}
secrets: {keys: [{label: demo, file: seal.key}]}
platforms:
  - name: demo
    credentials: [{username: demo, password_file: password}]
provisioner:
  kind: kubernetes
  kubernetes:
    kubeconfig: kubeconfig
    broker_namespace: chandler-demo
    images:
      # The catalog's images are not to be had without a registry: these are the same servers from Debian's packages.
      replace:
YAML
  while IFS=': ' read -r name image; do
    case $name in
      postgres | nats | redis | cassandra) printf '        docker.io/library/%s: %s\n' "$name" "$image" ;;
    esac
    [ "$name" != redis ] || printf '        docker.io/valkey/valkey: %s\n' "$image"
  done <"$CHANDLER_TESTBED_IMAGES"
} >"$room/chandler.yaml"
tools=$(sed -n 's/^tools: //p' "$CHANDLER_TESTBED_IMAGES")
cp "$KUBECONFIG" "$room/kubeconfig"
"$kubectl" create namespace chandler-demo >/dev/null
"$kubectl" -n chandler-demo create serviceaccount broker >/dev/null
shown "chandler rbac --config chandler.yaml --service-account chandler-demo/broker | kubectl apply -f -"
"$chandler" rbac --config "$room/chandler.yaml" --service-account chandler-demo/broker >"$room/rights.yaml"
"$kubectl" apply -f "$room/rights.yaml" | sed 's/^/   /'
# From now on the broker is this service account and nobody else.
token=$("$kubectl" -n chandler-demo create token broker --duration=2h)
cluster=$("$kubectl" config view --raw --minify -o json | jq '.clusters[0].cluster')
(umask 077 && jq -n --arg token "$token" --argjson cluster "$cluster" '{apiVersion: "v1", kind: "Config", "current-context": "demo",
  clusters: [{name: "demo", cluster: $cluster}], users: [{name: "demo", user: {token: $token}}],
  contexts: [{name: "demo", context: {cluster: "demo", user: "demo"}}]}' >"$room/kubeconfig")
may() { "$kubectl" --kubeconfig "$room/kubeconfig" auth can-i "$@" 2>/dev/null || true; }
tell "may it create namespaces? $(may create namespaces)    list secrets? $(may list secrets -A)    run commands in pods? $(may create pods --subresource=exec -A)"
good "no wildcard, no secrets list, no exec"

step "Start the broker outside the cluster"
shown "chandler serve --config chandler.yaml"
(cd "$room" && exec "$REPO/tests/testbed/enter" "$chandler" serve --config "$room/chandler.yaml") >"$room/broker.log" 2>&1 &
broker=$!
url=http://127.0.0.1:8089
curl_() { inside curl "$@"; }
for _ in $(seq 100); do
  curl_ -fsS --max-time 2 "$url/readyz" >/dev/null 2>&1 && break
  kill -0 "$broker" 2>/dev/null || die "the broker did not start"
  sleep 0.1
done
good "ready; it reaches instances through the API server"

# osb METHOD PATH [BODY]: sets $status and $body.
osb() {
  local answer
  answer=$(curl_ -sS --max-time 90 -u "demo:$password" -X "$1" "$url$2" \
    -H 'X-Broker-API-Version: 2.17' -H 'Content-Type: application/json' ${3:+-d "$3"} -w '\n%{http_code}')
  status=${answer##*$'\n'}
  body=${answer%$'\n'*}
}
want() { [ "$status" = "$1" ] || die "expected status $1, got $status: $body"; }
wait_for() { # until the instance's operation ended
  local last='' word
  while :; do
    osb GET "/v2/service_instances/$1/last_operation"
    want 200
    word=$(jq -r .description <<<"$body")
    [ "$word" = "$last" ] || tell "${dim}… $word$plain"
    last=$word
    case $(jq -r .state <<<"$body") in
      succeeded) return ;;
      failed) die "the operation failed: $word" ;;
    esac
    sleep 0.3
  done
}
short() { sed -E 's#(://[^:]+:)([^@]{4})[^@]*@#\1\2…@#' <<<"$1"; }

step "Read the catalog"
osb GET /v2/catalog
want 200
jq -r '.services[] | "   \(.name | . + " " * (12 - length))\(.plans | map(.name) | join(", "))"' <<<"$body"
service=$(jq -r '.services[] | select(.name == "postgres") | .id' <<<"$body")
plan=$(jq -r '.services[] | select(.name == "postgres") | .plans[] | select(.name == "small") | .id' <<<"$body")
[ -n "$plan" ] || die "postgres/small is not offered here"
good "what the cluster can run; clusters of PostgreSQL come with the CloudNativePG operator"
ids="service_id=$service&plan_id=$plan"

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
shown "PUT /v2/service_instances/shop-db?accepts_incomplete=true"
osb PUT '/v2/service_instances/shop-db?accepts_incomplete=true' \
  "{\"service_id\":\"$service\",\"plan_id\":\"$plan\",\"organization_guid\":\"demo\",\"space_guid\":\"demo\",\"parameters\":{\"database\":\"shop\"}}"
want 202
wait_for shop-db
iid=$("$chandler" instances list --config "$room/chandler.yaml" | awk 'NR == 2 {print $1}')
home=osb-$iid
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
left=0
count() { local n=$2 && printf '   %-42s %s\n' "$1" "$n" && left=$((left + n)); }
ours=app.kubernetes.io/managed-by=chandler,chandler.osb/instance=$iid
for kinds in namespaces pods,statefulsets,services,jobs persistentvolumeclaims secrets,configmaps,serviceaccounts networkpolicies,resourcequotas; do
  count "$kinds" "$("$kubectl" get "$kinds" -A -l "$ours" --no-headers --ignore-not-found 2>/dev/null | grep -c . || true)"
done
# Volumes go after their claims, when the volume provisioner has erased them.
for _ in $(seq 30); do
  volumes=$("$kubectl" get persistentvolumes -o json | jq --arg home "$home" '[.items[] | select(.spec.claimRef.namespace == $home)] | length')
  [ "$volumes" = 0 ] && break
  sleep 0.5
done
count 'volumes of instances' "$volumes"
count 'instances that are not deleted' "$("$chandler" instances list --config "$room/chandler.yaml" | tail -n +2 | wc -l)"
[ "$left" = 0 ] || die "something was left behind"
good "nothing is left"

kill "$broker"
wait "$broker" 2>/dev/null || true
broker=''
printf '\n%sDone in %s.%s The node %s.\n' "$bold" "$(mark=$began && since)" "$plain" \
  "$([ -n "$began_testbed" ] && echo 'is stopped now' || echo 'goes on running, as before')"
cat <<NEXT

What to try next
   tests/testbed/up            start the node and keep it; tests/testbed/down stops it
   docs/kubernetes.md          your own cluster: rights, tenancy, private registry, storage, mesh
   charts/chandler             the broker in the cluster
NEXT
