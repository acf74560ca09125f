#!/usr/bin/env bash
# The main job, once, with real servers: catalog, create, bind, use, rotate, revoke, delete, nothing left.
#
# Everything happens in a throwaway directory on 127.0.0.1. What is run is shown; passwords are shortened in the output.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

source "$(dirname "${BASH_SOURCE[0]}")/telling.sh"

say "Building (the first time takes minutes) …"
cargo build --release --locked --quiet
target=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)
chandler=$target/release/chandler
began=$(date +%s%N)

# Services run as users of their own, who must be able to pass through: not below somebody's private home or TMPDIR.
room=$(TMPDIR=/tmp mktemp -d -t chandler-demo.XXXXXX)
chmod 711 "$room"
data=$room/data
broker=''
finish() {
  local code=$?
  trap - EXIT
  if [ -n "$broker" ] && kill "$broker" 2>/dev/null; then wait "$broker" 2>/dev/null || true; fi
  [ -d "$data" ] && "$chandler" dev stop --data-dir "$data" >/dev/null 2>&1 || true
  if [ "$code" != 0 ]; then
    say "The demo failed. The broker's last words:"
    tail -n 30 "$room/broker.log" >&2 || true
  fi
  rm -rf "$room"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

printf '\n%schandler: a service broker, from an empty directory to nothing left%s\n' "$bold" "$plain"

step "Start the broker"
shown "chandler dev --port 0 --data-dir $data"
"$chandler" dev --port 0 --data-dir "$data" >"$room/welcome" 2>"$room/broker.log" &
broker=$!
for _ in $(seq 100); do
  url=$(sed -n 's/.* is ready on \(http:[^ ]*\)$/\1/p' "$room/welcome")
  [ -n "$url" ] && break
  kill -0 "$broker" 2>/dev/null || die "the broker did not start"
  sleep 0.05
done
[ -n "$url" ] || die "the broker did not become ready"
good "ready on $url"

# osb METHOD PATH [BODY]: sets $status and $body.
osb() {
  local answer
  answer=$(curl -sS --max-time 60 -u "dev:$(cat "$data/dev-password")" -X "$1" "$url$2" \
    -H 'X-Broker-API-Version: 2.17' -H 'Content-Type: application/json' ${3:+-d "$3"} -w '\n%{http_code}')
  status=${answer##*$'\n'}
  body=${answer%$'\n'*}
}
want() { [ "$status" = "$1" ] || die "expected status $1, got $status: $body"; }
wait_for() { # until the instance's operation ended
  local last=''
  while :; do
    osb GET "/v2/service_instances/$1/last_operation"
    want 200
    local word
    word=$(jq -r .description <<<"$body")
    [ "$word" = "$last" ] || tell "${dim}… $word$plain"
    last=$word
    case $(jq -r .state <<<"$body") in
      succeeded) return ;;
      failed) die "the operation failed: $word" ;;
    esac
    sleep 0.1
  done
}
short() { sed -E 's#(://[^:]+:)([^@]{4})[^@]*@#\1\2…@#' <<<"$1"; }

step "Read the catalog"
shown "curl -u dev:… -H 'X-Broker-API-Version: 2.17' $url/v2/catalog"
osb GET /v2/catalog
want 200
jq -r '.services[] | "   \(.name | . + " " * (10 - length))\(.plans | map(.name) | join(", "))\t\(.description)"' <<<"$body"
service=$(jq -r '.services[] | select(.name == "postgres") | .id' <<<"$body")
plan=$(jq -r '.services[] | select(.name == "postgres") | .plans[] | select(.name == "small") | .id' <<<"$body")
[ -n "$service" ] || die "postgres is not offered here; \`chandler doctor\` says why"
good "postgres/small is on offer"
ids="service_id=$service&plan_id=$plan"

step "Ask for a PostgreSQL, size small"
shown "PUT /v2/service_instances/shop-db?accepts_incomplete=true"
osb PUT '/v2/service_instances/shop-db?accepts_incomplete=true' \
  "{\"service_id\":\"$service\",\"plan_id\":\"$plan\",\"organization_guid\":\"demo\",\"space_guid\":\"demo\",\"parameters\":{\"database\":\"shop\"}}"
want 202
tell "202, operation $(jq -r .operation <<<"$body")"
wait_for shop-db
good "a real PostgreSQL server runs, for this instance alone"

bind() { # NAME BODY: sets $uri
  osb PUT "/v2/service_instances/shop-db/service_bindings/$1" "$2"
  want 201
  uri=$(jq -r .credentials.uri <<<"$body")
}
run_sql() { PGCONNECT_TIMEOUT=5 psql "$1" -qtAX -v ON_ERROR_STOP=1 -c "$2"; }

step "Bind an application: credentials of its own"
shown "PUT /v2/service_instances/shop-db/service_bindings/web"
bind web "{\"service_id\":\"$service\",\"plan_id\":\"$plan\"}"
web=$uri
good "$(short "$web")"

step "Connect with them, write and read"
run_sql "$web" 'CREATE TABLE orders (id int PRIMARY KEY, what text)'
run_sql "$web" "INSERT INTO orders VALUES (1, 'rope'), (2, 'tar')"
tell "orders: $(run_sql "$web" "SELECT string_agg(what, ', ' ORDER BY id) FROM orders")"
good "the credentials work"

step "Bind a second application: another user, the same data"
bind worker "{\"service_id\":\"$service\",\"plan_id\":\"$plan\"}"
worker=$uri
[ "$worker" != "$web" ] || die "two bindings got the same credentials"
tell "orders, seen by the second: $(run_sql "$worker" 'SELECT count(*) FROM orders')"
good "$(short "$worker")"

step "Rotate the first binding: both credentials work during the overlap"
shown "PUT …/service_bindings/web-2  {\"predecessor_binding_id\": \"web\"}"
bind web-2 '{"predecessor_binding_id":"web"}'
web2=$uri
run_sql "$web" 'SELECT 1' >/dev/null
run_sql "$web2" "INSERT INTO orders VALUES (3, 'lamp oil')"
good "old and new log in side by side: $(short "$web2")"

step "Unbind the old one: it is refused at once"
shown "DELETE …/service_bindings/web"
osb DELETE "/v2/service_instances/shop-db/service_bindings/web?$ids"
want 200
if refusal=$(run_sql "$web" 'SELECT 1' 2>&1); then die "the old credential still works"; fi
tell "psql: ${refusal##*: }"
tell "orders, seen by the new one: $(run_sql "$web2" "SELECT string_agg(what, ', ' ORDER BY id) FROM orders")"
good "revoked, and what it made is still there"

step "Unbind the rest and delete the instance"
for name in web-2 worker; do
  osb DELETE "/v2/service_instances/shop-db/service_bindings/$name?$ids"
  want 200
done
osb DELETE "/v2/service_instances/shop-db?accepts_incomplete=true&$ids"
want 202
wait_for shop-db
good "deleted"

step "Look for what is left"
left=0
count() { local n=$2 && printf '   %-42s %s\n' "$1" "$n" && left=$((left + n)); }
processes=0
for cwd in /proc/[0-9]*/cwd; do
  case $(readlink "$cwd" 2>/dev/null || true) in "$data"/instances/*) processes=$((processes + 1)) ;; esac
done
count 'processes of instances' "$processes"
count 'instance directories' "$(find "$data/instances" -mindepth 1 -maxdepth 1 -not -name '.ports' -not -name '.state' | wc -l)"
count 'reserved ports' "$(find "$data/instances/.ports" -mindepth 1 -not -name '.*' 2>/dev/null | wc -l)"
count 'instances that are not deleted' "$("$chandler" instances list --data-dir "$data" | tail -n +2 | wc -l)"
count 'open operations' "$("$chandler" operations list --open --data-dir "$data" | tail -n +2 | wc -l)"
[ "$left" = 0 ] || die "something was left behind"
good "nothing is left"

step "What was done is on record"
"$chandler" operations list --data-dir "$data" | awk 'NR > 1 {printf "   %-12s %-10s\n", $2, $3}' | tac
good "$("$chandler" operations list --data-dir "$data" | tail -n +2 | wc -l) operations"

kill "$broker"
wait "$broker" 2>/dev/null || true
broker=''
printf '\n%sDone in %s.%s Nothing is running, nothing is left.\n' "$bold" "$(mark=$began && since)" "$plain"
cat <<NEXT

What to try next
   make run                    serve on http://127.0.0.1:8080 and play with curl (README)
   http://127.0.0.1:8080/docs/ the API in a browser
   chandler doctor             what else this machine can provision
   docs/adding-a-service.md    a service of your own, without Rust
NEXT
