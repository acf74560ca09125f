# Sourced by everything in this room: where things are, how to speak, how to start a process and stop exactly that one.
#
# What must stay true: standard output carries `export` lines and nothing else; every daemon is recorded by process id and
# start time and sits in our own cgroup, so that `down` ends what `up` began and never a stranger.
# shellcheck shell=bash
set -euo pipefail

TESTBED=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usual_cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/chandler/testbed
CACHE=${CHANDLER_TESTBED_CACHE:-$usual_cache}
RUN=$CACHE/run # all state; `down` removes it
[[ $CACHE != *[[:space:]]* ]] || { echo "error: the cache's path has a space in it: $CACHE; set CHANDLER_TESTBED_CACHE" >&2 && exit 1; }

# The name of the network namespace, and of the cgroup below the root of every hierarchy. Another cache is another testbed,
# with names of its own, so that its `down` can never mean this one.
IDENTITY=chandler-testbed
[ "$CACHE" = "$usual_cache" ] || IDENTITY+=-$(echo "$CACHE" | sha256sum | cut -c1-6)
NETNS=/run/netns/$IDENTITY
ARCH=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')

say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

# Seconds since the script began, for the progress lines.
export TESTBED_BEGAN=${TESTBED_BEGAN:-$(date +%s%N)}
progress() { awk -v ns=$(($(date +%s%N) - TESTBED_BEGAN)) -v text="$*" 'BEGIN { printf "%6.1f s  %s\n", ns / 1e9, text }' >&2; }

need_root() { [ "$(id -u)" = 0 ] || die "the testbed makes network namespaces and containers: run as root (sudo -E $0)"; }

# One `up` or `down` at a time; the second waits for the first. No daemon may inherit descriptor 9, or it would keep the
# lock, nor 3, the output that somebody may be reading to its end.
take_lock() {
  mkdir -p "$CACHE"
  exec 9>"$CACHE/lock"
  flock -n 9 || {
    say "another up or down is at work; waiting for it …"
    flock -w 1800 9 || die "it did not finish within 30 minutes"
  }
}

# put FILE: writes standard input to FILE unless it says so already (kube-proxy exits when its file is rewritten).
put() {
  mkdir -p "$(dirname "$1")"
  cat >"$1.new"
  if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

# wait_until SECONDS "what is awaited" COMMAND…: tries until it succeeds. The command must end by itself within seconds.
wait_until() {
  local limit=$1 what=$2 end
  shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$what: not within $limit s; the logs are in $RUN/log"
    sleep 0.1
  done
  progress "$what"
}

# recipe_key FILE… : eight characters that change when one of the files does, for names of things made from them.
recipe_key() { cat "$@" | sha256sum | cut -c1-8; }

# --- our own cgroup -------------------------------------------------------------------------------------------------

# The hierarchies: all the mounted ones of version 1 (and an empty one of version 2 beside them), or the single one of
# version 2.
cgroup_roots() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts | sort -u; }

# The hierarchy by which processes are found again.
cgroup_of_processes() { if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo "/sys/fs/cgroup/$IDENTITY"; else echo "/sys/fs/cgroup/pids/$IDENTITY"; fi; }

make_cgroups() {
  local root
  for root in $(cgroup_roots); do
    [ -d "$root/$IDENTITY" ] && continue
    mkdir "$root/$IDENTITY"
    if [ -e "$root/cpuset.mems" ]; then # a new cpuset of version 1 is empty, and nothing can run in it
      cat "$root/cpuset.cpus" >"$root/$IDENTITY/cpuset.cpus"
      cat "$root/cpuset.mems" >"$root/$IDENTITY/cpuset.mems"
    fi
  done
  mkdir -p "$(cgroup_of_processes)/system"
}

processes_of_ours() { find "$(cgroup_of_processes)" -name cgroup.procs -exec cat {} + 2>/dev/null || true; }

# Everything left in our cgroup: containers, their shims, children of daemons that are gone.
kill_rest() {
  local try left
  for try in $(seq 50); do
    left=$(processes_of_ours)
    [ -n "$left" ] || return 0
    # shellcheck disable=SC2086
    kill -9 $left 2>/dev/null || true
    sleep 0.1
  done
  die "processes that do not end: $left (attempt $try)"
}

remove_cgroups() {
  local root
  for root in $(cgroup_roots); do
    [ ! -d "$root/$IDENTITY" ] || find "$root/$IDENTITY" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  done
}

# --- processes ------------------------------------------------------------------------------------------------------

# When a process started, in clock ticks since boot: with its id this names one process for good.
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

alive() { # alive NAME
  local pid when
  [ -s "$RUN/pid/$1" ] || return 1
  read -r pid when <"$RUN/pid/$1"
  [ "$(started_at "$pid")" = "$when" ] && [ "$(sed 's/.*) //' "/proc/$pid/stat" | cut -d' ' -f1)" != Z ]
}

# start NAME COMMAND…: a daemon of its own session, in our cgroup, its output in RUN/log/NAME.log. Nothing if it runs.
start() {
  local name=$1 pid
  shift
  ! alive "$name" || return 0
  mkdir -p "$RUN/pid" "$RUN/log"
  (
    exec 3>&- 9>&- </dev/null >>"$RUN/log/$name.log" 2>&1
    echo "$BASHPID" >"$(cgroup_of_processes)/system/cgroup.procs"
    # In the machine's own mount namespace, also when somebody restarts it from within `enter`.
    exec setsid nsenter --mount=/proc/1/ns/mnt -- "$@"
  ) &
  pid=$!
  echo "$pid $(started_at "$pid")" >"$RUN/pid/$name"
}

# stop NAME [SECONDS]: asks, waits, then insists.
stop() {
  local name=$1 limit=${2:-5} pid end
  if alive "$name"; then
    read -r pid _ <"$RUN/pid/$name"
    kill "$pid" 2>/dev/null || true
    end=$((SECONDS + limit))
    while alive "$name" && [ $SECONDS -lt $end ]; do sleep 0.05; done
    ! alive "$name" || kill -9 -- "-$pid" 2>/dev/null || true
    while alive "$name"; do sleep 0.05; done
  fi
  rm -f "$RUN/pid/$name"
}

# kill_now NAME: without asking, with its children (each daemon leads a process group).
kill_now() {
  local pid
  if alive "$1"; then
    read -r pid _ <"$RUN/pid/$1"
    kill -9 -- "-$pid" 2>/dev/null || true
    while alive "$1"; do sleep 0.05; done
  fi
  rm -f "$RUN/pid/$1"
}

# --- the network namespace ------------------------------------------------------------------------------------------

# inside COMMAND…: in the node's network. Not `ip netns exec`: that one mounts another /sys, which hides the cgroups.
inside() { nsenter --net="$NETNS" "$@"; }

# The ranges that live behind the namespace. Only this machine knows them; see network.sh.
NODE_ADDRESS=10.245.0.1
POD_RANGE=10.244.0.0/16
SERVICE_RANGE=10.96.0.0/16
DNS_ADDRESS=10.96.0.10
