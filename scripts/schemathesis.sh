#!/usr/bin/env bash
# Tries a running broker against the OpenAPI document it serves, with schemathesis.
#
#   CHANDLER_PASSWORD=... scripts/schemathesis.sh http://127.0.0.1:8080 [USER]
#
# USER is `dev` unless given; everything after `--` goes to schemathesis. MAX_EXAMPLES (default 30) bounds
# the cases for each operation, MAX_SECONDS (default 240) the whole run, SEED fixes what is tried, CHANDLER_SERVICE_ID
# and CHANDLER_PLAN_ID name an offering and a plan of the catalog, so that more than refusals is seen. The exit
# code is schemathesis' own, or 124 when the time was over. Only a broker on this machine is ever asked.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

version=4.32.5
url=${1:-}
user=dev
[ $# -lt 1 ] || shift
if [ $# -gt 0 ] && [ "$1" != -- ]; then
  user=$1
  shift
fi
[ "${1:-}" != -- ] || shift

case $url in
  http://127.0.0.1:* | http://localhost:* | 'http://[::1]:'*) ;;
  *) die "give the URL of a broker on this machine, such as http://127.0.0.1:8080" ;;
esac
[ -n "${CHANDLER_PASSWORD:-}" ] || die "set CHANDLER_PASSWORD to the password of the platform user \`$user\`"

venv=$CHANDLER_CACHE/tools/schemathesis-$version
if [ ! -x "$venv/bin/schemathesis" ]; then
  say "Installing schemathesis $version into $venv (once) ..."
  rm -rf "$venv" "$venv.new"
  python3 -m venv "$venv.new"
  "$venv.new/bin/python" -m pip install --quiet --disable-pip-version-check "schemathesis==$version"
  # The scripts in a venv name its path: make them again for the final one.
  mv "$venv.new" "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "schemathesis==$version"
fi

# The password goes through the environment: arguments can be read by every user of the machine.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  cat openapi/schemathesis.toml
  cat <<'TOML'

[auth.basic]
username = "${CHANDLER_USER}"
password = "${CHANDLER_PASSWORD}"
TOML
} >"$work/schemathesis.toml"

cp openapi/schemathesis_hooks.py "$work/"

export CHANDLER_USER=$user CHANDLER_PASSWORD SCHEMATHESIS_HOOKS=schemathesis_hooks PYTHONDONTWRITEBYTECODE=1
options=(
  --checks all
  --phases 'examples,coverage,fuzzing,stateful'
  --max-examples "${MAX_EXAMPLES:-30}"
  --max-failures 20
  # Several would meet a fault of CPython's parser, which is not safe to call from threads.
  --workers 1
  --request-timeout 15
  --header 'X-Broker-API-Version: 2.17'
  --continue-on-failure
)
[ -z "${SEED:-}" ] || options+=(--seed "$SEED")

# It keeps its example database where it stands: not in the clone.
cd "$work"
limit=${MAX_SECONDS:-240}
code=0
timeout --signal INT --kill-after 15 "$limit" \
  "$venv/bin/schemathesis" --config-file "$work/schemathesis.toml" --no-color run "${options[@]}" "$@" "$url/openapi.json" || code=$?
[ "$code" != 124 ] || say "schemathesis did not finish within $limit seconds: that is a failure (MAX_SECONDS sets the limit)"
exit "$code"
