# Debian packages for what is being started: only the missing ones, and none of their services is left running.
# shellcheck shell=bash

has_command() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

# wanted_packages WHAT…: one line per package that is missing, for the names that `up` takes.
wanted_packages() {
  local what java=no
  has_command ip || echo iproute2
  has_command curl || echo curl
  has_command openssl || echo openssl
  for what in "$@"; do
    case $what in
    kubernetes)
      java=yes
      has_command python3 || echo python3
      has_command cc || echo build-essential
      has_command etcd || echo etcd-server
      has_command containerd || echo containerd
      has_command runc || echo runc
      [ -x /usr/lib/cni/bridge ] || echo containernetworking-plugins
      has_command iptables || echo iptables
      has_command nft || echo nftables
      has_command conntrack || echo conntrack
      # What the images are made of.
      dpkg -s busybox-static >/dev/null 2>&1 || echo busybox-static
      compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || echo postgresql
      has_command redis-server || echo redis-server
      has_command redis-cli || echo redis-tools
      ;;
    keycloak | cassandra) java=yes ;;
    couchdb)
      has_command node || echo nodejs
      has_command npm || echo npm
      ;;
    esac
  done
  if [ $java = yes ]; then
    compgen -G '/usr/lib/jvm/java-17-openjdk-*/bin/javac' >/dev/null || echo openjdk-17-jdk-headless
    has_command mvn || echo maven
  fi
}

# install_packages NAME…: without starting anything that they bring along.
install_packages() {
  local log policy=/usr/sbin/policy-rc.d no_cluster=/etc/postgresql-common/createcluster.d/chandler-testbed.conf made=()
  has_command apt-get || die "missing: $* (names of Debian packages); install what your system calls them, then try again"
  progress "installing Debian packages: $*"
  if [ ! -e "$policy" ]; then
    made+=("$policy")
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  if [[ " $* " == *" postgresql "* ]]; then
    made+=("$no_cluster")
    mkdir -p "$(dirname "$no_cluster")"
    echo 'create_main_cluster = false' >"$no_cluster"
  fi
  log=$(mktemp)
  if ! { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 update &&
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"; } >"$log" 2>&1 9>&-; then
    tail -n 30 "$log" >&2
    [ ${#made[@]} -eq 0 ] || rm -f "${made[@]}"
    die "apt-get failed; the whole log is $log"
  fi
  rm -f "$log"
  [ ${#made[@]} -eq 0 ] || rm -f "${made[@]}"
  # Where systemd runs, a package also arranges to be started at boot: take that back.
  if [ -d /run/systemd/system ]; then
    local service
    for service in etcd containerd postgresql redis-server; do
      [[ " $* " != *" $service"* ]] || systemctl disable --quiet --now "$service.service" 2>/dev/null || true
    done
  fi
}

ensure_packages() {
  local missing
  has_command go || die "Go 1.25 or newer is needed on the PATH (Debian's own is too old)"
  mapfile -t missing < <(wanted_packages "$@" | sort -u)
  [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}
