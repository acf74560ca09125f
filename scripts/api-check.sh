#!/usr/bin/env bash
# Is the OpenAPI document true? Starts a broker of its own with a throwaway state and tries it with schemathesis.
#
# The broker only accepts (`--role http`): nothing it is asked for is made, however much is asked for. SEED fixes what
# is tried, MAX_EXAMPLES bounds it, MAX_SECONDS bounds the time, CHANDLER names a program to try instead of building one.
# The exit code is schemathesis' own.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

chandler=${CHANDLER:-}
if [ -z "$chandler" ]; then
  cargo build --locked --quiet
  chandler=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/debug/chandler
fi

# Services run as users of their own, who must be able to pass through; else nothing would be offered.
room=$(TMPDIR=/tmp mktemp -d -t chandler-check.XXXXXX)
chmod 711 "$room"
broker=''
finish() {
  local code=$?
  trap - EXIT
  if [ -n "$broker" ] && kill "$broker" 2>/dev/null; then wait "$broker" 2>/dev/null || true; fi
  if [ "$code" != 0 ]; then
    say "The broker's last words:"
    tail -n 10 "$room/broker.log" >&2 || true
  fi
  rm -rf "$room"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

umask 077
head -c 24 /dev/urandom | base64 -w 0 >"$room/password"
"$chandler" secrets new-key "$room/seal.key" >/dev/null
cat >"$room/config.yaml" <<YAML
http: {listen: "127.0.0.1:0"}
store: {url: "sqlite://$room/broker.db"}
secrets: {keys: [{label: one, file: seal.key}]}
provisioner: {local: {dir: instances}}
platforms: [{name: check, credentials: [{username: check, password_file: password}]}]
YAML
: >"$room/broker.log"
"$chandler" serve --role http --config "$room/config.yaml" >"$room/broker.log" 2>&1 &
broker=$!
url=''
for _ in $(seq 200); do
  url=$(sed -n 's/.*"address":"\(127\.0\.0\.1:[0-9]*\)".*"chandler is ready".*/http:\/\/\1/p' "$room/broker.log")
  [ -n "$url" ] && curl --silent --fail --output /dev/null "$url/readyz" && break
  kill -0 "$broker" 2>/dev/null || die "the broker did not start"
  sleep 0.05
done
[ -n "$url" ] || die "the broker did not become ready"

CHANDLER_PASSWORD=$(cat "$room/password")
catalog=$(printf 'user = "check:%s"\n' "$CHANDLER_PASSWORD" | curl --silent --fail --config - -H 'X-Broker-API-Version: 2.17' "$url/v2/catalog")
CHANDLER_SERVICE_ID=$(jq -r '.services[0].id' <<<"$catalog")
CHANDLER_PLAN_ID=$(jq -r '.services[0].plans[0].id' <<<"$catalog")
[ "$CHANDLER_PLAN_ID" != null ] || die "the broker offers nothing on this machine; \`chandler doctor\` says why"
export CHANDLER_PASSWORD CHANDLER_SERVICE_ID CHANDLER_PLAN_ID
SEED=${SEED:-217} MAX_EXAMPLES=${MAX_EXAMPLES:-40} MAX_SECONDS=${MAX_SECONDS:-90} scripts/schemathesis.sh "$url" check "$@"

# A run in which everything was refused would have shown little.
accepted=$(curl --silent --fail "$url/metrics" | grep -c 'requests_total{method="\(PUT\|DELETE\)",.*status="2xx"' || true)
[ "$accepted" -gt 0 ] || die "the broker accepted nothing; openapi/schemathesis_hooks.py should see to that"
