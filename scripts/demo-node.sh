# Sourced by the demos on the testbed's node: the node, the broker under its own rights, how to ask it, what is left.
#
# Everything that sends something runs inside the node's network, which has no way out of this machine.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/telling.sh"

chandler=${CHANDLER:-} # a program to take instead of building one
if [ -z "$chandler" ]; then
  say "Building (the first time takes minutes) …"
  cargo build --release --locked --quiet
  target=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)
  chandler=$target/release/chandler
fi

inside() { tests/testbed/enter "$@"; }
curl_() { inside curl "$@"; }

# start_node SERVER…: the node and servers beside it; what is started here is stopped at the end.
start_node() {
  local exports
  say "Starting the Kubernetes node (the first time builds it, which takes minutes) …"
  began_testbed=''
  [ -e /run/netns/chandler-testbed ] || began_testbed=yes
  exports=$(tests/testbed/up kubernetes "$@")
  eval "$exports"
  kubectl=$CHANDLER_TESTBED_KUBECTL
  tools=$(sed -n 's/^tools: //p' "$CHANDLER_TESTBED_IMAGES")
  room=$(mktemp -d -t chandler-demo.XXXXXX)
  broker=''
  began=$(date +%s%N)
  trap finish EXIT
  trap 'exit 130' INT TERM
}

finish() {
  local code=$?
  trap - EXIT
  stop_broker
  if [ "$code" != 0 ]; then
    say "The demo failed. The broker's last words:"
    tail -n 30 "$room/broker.log" >&2 || true
    [ -z "${home:-}" ] || "$kubectl" delete namespace "$home" --wait=false >/dev/null 2>&1 || true
  fi
  "$kubectl" delete --ignore-not-found --wait=false -f "$room/rights.yaml" >/dev/null 2>&1 || true
  "$kubectl" delete namespace chandler-demo shop stranger --ignore-not-found --wait=false >/dev/null 2>&1 || true
  if [ "$(type -t clear_up)" = function ]; then clear_up || true; fi
  rm -rf "$room"
  [ -z "$began_testbed" ] || tests/testbed/down >/dev/null 2>&1 || true
  exit "$code"
}
stop_broker() {
  if [ -n "$broker" ] && kill "$broker" 2>/dev/null; then wait "$broker" 2>/dev/null || true; fi
  broker=''
}

# configure: writes the broker's configuration; more of it comes from standard input.
configure() {
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
    cat
  } >"$room/chandler.yaml"
  cp "$KUBECONFIG" "$room/kubeconfig"
}

# give_rights: the broker becomes the service account chandler-demo/broker, with exactly what `chandler rbac` prints.
give_rights() {
  local token cluster
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
}
may() { "$kubectl" --kubeconfig "$room/kubeconfig" auth can-i "$@" 2>/dev/null || true; }

url=http://127.0.0.1:8089
start_broker() {
  shown "chandler serve --config chandler.yaml"
  (cd "$room" && exec "$REPO/tests/testbed/enter" "$chandler" serve --config "$room/chandler.yaml") >"$room/broker.log" 2>&1 &
  broker=$!
  for _ in $(seq 100); do
    curl_ -fsS --max-time 2 "$url/readyz" >/dev/null 2>&1 && return
    kill -0 "$broker" 2>/dev/null || die "the broker did not start"
    sleep 0.1
  done
  die "the broker is not ready: $(curl_ -sS --max-time 2 "$url/readyz" 2>&1)"
}

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

# The plan postgres/small: sets $service, $plan and $ids.
choose_postgres() {
  osb GET /v2/catalog
  want 200
  service=$(jq -r '.services[] | select(.name == "postgres") | .id' <<<"$body")
  plan=$(jq -r '.services[] | select(.name == "postgres") | .plans[] | select(.name == "small") | .id' <<<"$body")
  [ -n "$plan" ] || die "postgres/small is not offered here"
  ids="service_id=$service&plan_id=$plan"
}
# create_database: the instance shop-db; sets $iid and $home.
create_database() {
  shown "PUT /v2/service_instances/shop-db?accepts_incomplete=true"
  osb PUT '/v2/service_instances/shop-db?accepts_incomplete=true' \
    "{\"service_id\":\"$service\",\"plan_id\":\"$plan\",\"organization_guid\":\"demo\",\"space_guid\":\"demo\",\"parameters\":{\"database\":\"shop\"}}"
  want 202
  wait_for shop-db
  iid=$("$chandler" instances list --config "$room/chandler.yaml" | awk 'NR == 2 {print $1}')
  home=osb-$iid
}

left=0
count() { local n=$2 && printf '   %-42s %s\n' "$1" "$n" && left=$((left + n)); }
# count_cluster: everything of the instance that is still there.
count_cluster() {
  local ours kinds volumes
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
}
done_telling() {
  printf '\n%sDone in %s.%s The node %s.\n' "$bold" "$(mark=$began && since)" "$plain" \
    "$([ -n "$began_testbed" ] && echo 'is stopped now' || echo 'goes on running, as before')"
}
