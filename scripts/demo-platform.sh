#!/usr/bin/env bash
# Whose secret it is: an application gets nothing but a client of its own at Keycloak, and with that client's token reads its
# database's password from Vault. It rotates while the application works, and after unbind nothing lets it in.
#
# A Kubernetes node, Keycloak and Vault are started if they do not run, and stopped again if this started the node. All
# that is sent stays inside the node's network, which has no way out of this machine.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/demo-node.sh"

fetcher=localhost/chandler:demo-platform
realm=demo-bindings
start_node vault keycloak
[ -n "${CHANDLER_TESTBED_VAULT_ADDR_FOR_PODS:-}" ] && [ -n "${CHANDLER_TESTBED_KEYCLOAK_URL_FOR_PODS:-}" ] ||
  die "Vault and Keycloak run outside the node's network: stop them with tests/testbed/down vault keycloak, then try again"
vault=$CHANDLER_TESTBED_VAULT_ADDR_FOR_PODS
keycloak=$CHANDLER_TESTBED_KEYCLOAK_URL_FOR_PODS
OUT=$room/image.tar CHANDLER=$chandler scripts/image.sh $fetcher >/dev/null
tests/testbed/image import "$room/image.tar"

# As operators of the two servers, for what the broker may not do.
vault_() { # vault_ METHOD PATH [BODY]
  inside curl -sS --max-time 20 -H "X-Vault-Token: $VAULT_TOKEN" -X "$1" "$vault/v1/$2" ${3:+-d "$3"}
}
keycloak_() { # keycloak_ METHOD PATH
  local token
  token=$(inside curl -sS --max-time 20 "$keycloak/realms/master/protocol/openid-connect/token" -d grant_type=password \
    -d client_id=admin-cli -d "username=$KEYCLOAK_ADMIN" --data-urlencode "password=$KEYCLOAK_ADMIN_PASSWORD" | jq -r .access_token)
  inside curl -sS --max-time 20 -H "Authorization: Bearer $token" -X "$1" "$keycloak/admin/realms$2"
}
clear_up() {
  for path in sys/mounts/demo-osb sys/mounts/demo-osb-int sys/auth/demo-jwt sys/auth/demo-approle; do
    vault_ DELETE $path >/dev/null
  done
  keycloak_ DELETE /$realm >/dev/null
  tests/testbed/image rm $fetcher
}

printf '\n%schandler with Keycloak and Vault: a secret of its own for every application%s\n' "$bold" "$plain"

step "What an operator sets up once: a realm, mounts, policies"
configure <<YAML
vault:
  address: $vault
  allow_plaintext: true # this network has no way out
  kv_mount: demo-osb
  internal_mount: demo-osb-int
  jwt_mount: demo-jwt
  login: {kind: approle, mount: demo-approle, role_id_file: role-id, secret_id_file: secret-id, wrapped: true}
keycloak:
  url: $keycloak
  allow_plaintext: true
  realm: $realm
  client_secret_file: keycloak-secret
bindings: {rotation_grace_seconds: 5}
YAML
shown "chandler bootstrap keycloak --config chandler.yaml --apply"
inside env KEYCLOAK_ADMIN_PASSWORD="$KEYCLOAK_ADMIN_PASSWORD" "$chandler" bootstrap keycloak --config "$room/chandler.yaml" --apply \
  --username "$KEYCLOAK_ADMIN" >"$room/said" 2>&1 || die "$(cat "$room/said")"
grep -E '^  (changed|as it was)' "$room/said" | sed 's/^/ /'
shown "chandler bootstrap vault --config chandler.yaml --apply"
inside env VAULT_TOKEN="$VAULT_TOKEN" "$chandler" bootstrap vault --config "$room/chandler.yaml" --apply >"$room/said" 2>&1 ||
  die "$(cat "$room/said")"
grep -E '^  (made|changed|as it was)' "$room/said" | sed 's/^/ /'
role=$(vault_ LIST auth/demo-approle/role | jq -r '.data.keys[0]')
(umask 077 && vault_ GET "auth/demo-approle/role/$role/role-id" | jq -j .data.role_id >"$room/role-id")
admit() { # lets one process log in as the broker
  (umask 077 && inside curl -sS --max-time 20 -H "X-Vault-Token: $VAULT_TOKEN" -H 'X-Vault-Wrap-TTL: 15m' -X POST \
    "$vault/v1/auth/demo-approle/role/$role/secret-id" | jq -j .wrap_info.token >"$room/secret-id")
}
admit
good "the broker gets a wrapping token that works once"

step "Start the broker, and let it look at its own rights"
give_rights
start_broker
good "ready"

step "Ask for a PostgreSQL, size small"
choose_postgres
create_database
good "its administrator's password is in Vault, where no application reads"

step "Bind an application"
shown "PUT /v2/service_instances/shop-db/service_bindings/web"
osb PUT /v2/service_instances/shop-db/service_bindings/web "{\"service_id\":\"$service\",\"plan_id\":\"$plan\"}"
want 201
(umask 077 && jq .credentials <<<"$body" >"$room/binding.json")
jq '.keycloak.client_secret = "…"' "$room/binding.json" | sed 's/^/   /'
[ "$(jq 'has("password") or has("uri")' "$room/binding.json")" = false ] || die "the answer holds a password"
good "where the database is, and how to ask for its password: nothing that opens it"

step "The application fetches it with its own client, and works"
"$kubectl" create namespace shop >/dev/null
"$kubectl" label namespace shop chandler.osb/consumer=true pod-security.kubernetes.io/enforce=restricted >/dev/null
"$kubectl" -n shop create secret generic web-binding --from-file=binding.json="$room/binding.json" >/dev/null
"$kubectl" apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
  volumes:
    - {name: binding, secret: {secretName: web-binding, defaultMode: 0440}}
    - {name: fetched, emptyDir: {medium: Memory}}
  initContainers:
    - name: fetch
      image: $fetcher
      imagePullPolicy: IfNotPresent
      restartPolicy: Always # beside the application: it follows rotations
      args: [fetch, --from, /binding/binding.json, --as, files, --to, /fetched/db, --watch, --every, "2", --allow-plaintext]
      volumeMounts: [{name: binding, mountPath: /binding}, {name: fetched, mountPath: /fetched}]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
  containers:
    - name: app
      image: $tools
      imagePullPolicy: IfNotPresent
      command: [sleep, "3600"]
      volumeMounts: [{name: fetched, mountPath: /fetched}]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
YAML
"$kubectl" -n shop wait --for=condition=Ready pod/web --timeout=90s >/dev/null
in_pod() { "$kubectl" -n shop exec web -c app -- "$@"; }
entry() { in_pod cat "/fetched/db/$1" 2>/dev/null || true; }
for _ in $(seq 60); do [ -n "$(entry uri)" ] && break || sleep 0.5; done
first=$(entry uri)
[ -n "$first" ] || die "nothing was fetched: $("$kubectl" -n shop logs web -c fetch --tail 5 2>&1)"
run_sql() { in_pod env PGCONNECT_TIMEOUT=5 psql "$1" -qtAX -v ON_ERROR_STOP=1 -c "$2"; }
run_sql "$first" "CREATE TABLE orders (id int PRIMARY KEY, what text); INSERT INTO orders VALUES (1, 'rope'), (2, 'tar')"
tell "as $(entry username): $(run_sql "$first" "SELECT string_agg(what, ', ' ORDER BY id) FROM orders")"
good "token from Keycloak, secret from Vault, rows from PostgreSQL"

step "What others get"
data_path=$(jq -r .vault.data_path "$room/binding.json")
# Another secret id for the broker's role: what somebody could do who stole the broker's log-in.
broker_token=$(inside curl -sS --max-time 20 "$vault/v1/auth/demo-approle/login" -d "{\"role_id\":\"$(cat "$room/role-id")\",
  \"secret_id\":\"$(vault_ POST "auth/demo-approle/role/$role/secret-id" | jq -r .data.secret_id)\"}" | jq -r .auth.client_token)
answer() { inside curl -sS -o /dev/null -w '%{http_code}' --max-time 20 "$@"; }
seen=$(answer -H "X-Vault-Token: $broker_token" "$vault/$data_path")
tell "the broker itself, reading the secret it wrote: $seen"
[ "$seen" = 403 ] || die "the broker can read it"
osb PUT /v2/service_instances/shop-db/service_bindings/other "{\"service_id\":\"$service\",\"plan_id\":\"$plan\"}"
want 201
other=$(jq .credentials <<<"$body")
log_in() { # log_in CREDENTIALS: sets $token_status and $vault_token
  local said jwt
  said=$(inside curl -sS --max-time 20 -w '\n%{http_code}' "$(jq -r .keycloak.token_uri <<<"$1")" -d grant_type=client_credentials \
    -d "client_id=$(jq -r .keycloak.client_id <<<"$1")" --data-urlencode "client_secret=$(jq -r .keycloak.client_secret <<<"$1")")
  token_status=${said##*$'\n'}
  jwt=$(jq -r '.access_token // empty' <<<"${said%$'\n'*}")
  vault_token=$(inside curl -sS --max-time 20 "$vault/v1/auth/demo-jwt/login" -d "{\"role\":\"binding\",\"jwt\":\"$jwt\"}" |
    jq -r '.auth.client_token // empty')
}
log_in "$other"
seen=$(answer -H "X-Vault-Token: $vault_token" "$vault/$data_path")
tell "another binding of the same database: $seen"
[ "$seen" = 403 ] || die "another binding can read it"
seen=$(answer -H "X-Vault-Token: $vault_token" "$vault/$(jq -r .vault.data_path <<<"$other")")
tell "the same one, its own secret: $seen"
[ "$seen" = 200 ] || die "it cannot read its own"
osb DELETE "/v2/service_instances/shop-db/service_bindings/other?$ids"
want 200
good "each reads its own, and nobody else does"

step "Rotate while the application works"
shown "POST /api/v1/bindings/web/rotate"
osb POST /api/v1/bindings/web/rotate '{}'
want 200
for _ in $(seq 60); do [ "$(entry uri)" != "$first" ] && break || sleep 0.5; done
second=$(entry uri)
[ "$second" != "$first" ] || die "the new credentials did not arrive: $("$kubectl" -n shop logs web -c fetch --tail 5 2>&1)"
tell "now $(entry username); orders: $(run_sql "$second" 'SELECT count(*) FROM orders')"
for _ in $(seq 60); do run_sql "$first" 'SELECT 1' >/dev/null 2>&1 || break; sleep 0.5; done
if run_sql "$first" 'SELECT 1' >/dev/null 2>&1; then die "the former password goes on working"; fi
good "the new password was in the pod before the former one stopped working"

step "Unbind: every way in is closed"
log_in "$(cat "$room/binding.json")"
osb DELETE "/v2/service_instances/shop-db/service_bindings/web?$ids"
want 200
if refusal=$(run_sql "$second" 'SELECT 1' 2>&1); then die "the password still works"; fi
tell "PostgreSQL: $(grep -o 'FATAL.*\|role .*' <<<"$refusal" | head -n 1)"
seen=$(answer -H "X-Vault-Token: $vault_token" "$vault/$data_path")
tell "Vault, with a token from before: $seen"
[ "$seen" = 403 ] || [ "$seen" = 404 ] || die "the secret can still be read"
log_in "$(cat "$room/binding.json")"
tell "Keycloak: $token_status"
[ "$token_status" = 401 ] || die "its client still gets tokens"
good "nothing lets it in any more"

step "Who did what, and is everything where it belongs"
shown "chandler audit verify; chandler reconcile"
inside "$chandler" audit verify --config "$room/chandler.yaml" | tail -n 2 | sed 's/^/   /'
admit
inside "$chandler" reconcile --config "$room/chandler.yaml" | tail -n 3 | sed 's/^/   /'
good "an unbroken chain; database, Keycloak, Vault and PostgreSQL agree"

step "Delete, and look for what is left"
osb DELETE "/v2/service_instances/shop-db?accepts_incomplete=true&$ids"
want 202
wait_for shop-db
count_cluster
keys() { vault_ LIST "$1" | jq '.data.keys // [] | length'; }
count 'secrets of bindings in Vault' "$(keys demo-osb/metadata/)"
count 'secrets of instances in Vault' "$(keys demo-osb-int/metadata/)"
count 'clients of bindings in Keycloak' "$(keycloak_ GET "/$realm/clients?clientId=osb-b-&search=true" | jq length)"
[ "$left" = 0 ] || die "something was left behind"
good "nothing is left"

stop_broker
done_telling
cat <<NEXT

What to try next
   docs/security.md      who can read what, what each compromise gives, what to do when a server is down
   examples/fetch        the same from a shell, Python, Node, Go and Spring
   charts/chandler       the broker in the cluster
NEXT
