#!/usr/bin/env bash
# Installs the Debian packages that the demo and the tests need and this machine lacks.
#
# Only what is missing is installed, and none of it is left running or started at boot: chandler
# starts servers of its own. With everything there, this looks and returns.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }
have_postgres() { have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }

missing=()
have cc || missing+=(build-essential)
have curl || missing+=(curl)
have jq || missing+=(jq)
have git || missing+=(git)
have_postgres || missing+=(postgresql)
have redis-server || have valkey-server || missing+=(redis-server)
have nats-server || missing+=(nats-server)
have mariadbd || missing+=(mariadb-server-core)
have mariadb-install-db && have my_print_defaults || missing+=(mariadb-server-core mariadb-client-core)
# The test of the OpenAPI document makes a Python environment.
have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)

[ ${#missing[@]} -gt 0 ] || exit 0

have apt-get || die "missing: ${missing[*]} (names of Debian packages); install what your system calls them, then try again"
as_root=()
if [ "$(id -u)" != 0 ]; then
  have sudo || die "missing packages: ${missing[*]}; run as root: apt-get install ${missing[*]}"
  as_root=(sudo)
fi

say "Installing Debian packages: ${missing[*]}"

# Packages must not start what they install: no service, no PostgreSQL cluster.
policy=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/chandler-deps.conf
made=()
undo() {
  [ ${#made[@]} -eq 0 ] || "${as_root[@]}" rm -f "${made[@]}"
}
trap undo EXIT
if [ ! -e "$policy" ]; then
  made+=("$policy")
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi
if [[ " ${missing[*]} " == *" postgresql "* ]]; then
  made+=("$no_cluster")
  "${as_root[@]}" mkdir -p "$(dirname "$no_cluster")"
  printf 'create_main_cluster = false\n' | "${as_root[@]}" tee "$no_cluster" >/dev/null
fi

log=$(mktemp)
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    die "apt-get $1 failed; the whole log is $log"
  }
}
apt update
apt install -y --no-install-recommends "${missing[@]}"
rm -f "$log"

# Where systemd runs, a package also arranges to be started at boot: take that back for what was just installed.
if [ -d /run/systemd/system ]; then
  for service in postgresql redis-server nats-server; do
    if [[ " ${missing[*]} " == *" $service "* ]]; then
      "${as_root[@]}" systemctl disable --quiet --now "$service.service" 2>/dev/null || true
    fi
  done
fi
say "Installed: ${missing[*]}. Their services were not started."
