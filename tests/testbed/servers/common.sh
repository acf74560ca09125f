# Sourced by each server's script: where it listens, how it is started, stopped and found.
#
# A server is one daemon named NAME with its state below RUN/servers/NAME. While the node runs, it lives in the node's
# network, where its usual ports are free; otherwise on this machine's loopback, at its usual ports or, where somebody
# has those, at others. Whoever sources this sets NAME and defines `launch` (start the daemon), `ready` (true when it
# answers) and `exports` (print the variables).
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

STATE=$RUN/servers/$NAME
exec 1>&2

# Where a server started now belongs: `inside` the node's network or on the `host`.
place_now() { if alive kube-apiserver; then echo inside; else echo host; fi; }
place() { cat "$STATE/place"; }

# here COMMAND…: runs it in the server's network.
here() { if [ "$(place)" = inside ]; then inside "$@"; else "$@"; fi; }
answers() { here curl -sf --max-time 3 -o /dev/null "$@"; }

# Pods reach a server that listens at every address of the node's network, which reaches no further than this machine.
listen_address() { if [ "$(place)" = inside ]; then echo 0.0.0.0; else echo 127.0.0.1; fi; }

# port WHAT USUAL: the number this server uses for WHAT, the same at each call.
port() {
  local file=$STATE/port.$1 number=$2
  if [ ! -s "$file" ]; then
    if [ "$(place)" = host ]; then
      while (exec 5<>"/dev/tcp/127.0.0.1/$number") 2>/dev/null; do number=$(shuf -i 20000-29999 -n 1); done
    fi
    echo "$number" >"$file"
  fi
  cat "$file"
}

# secret WHAT: made once, the same at each call.
secret() {
  [ -s "$STATE/secret.$1" ] || (umask 077 && openssl rand -hex 16 >"$STATE/secret.$1")
  cat "$STATE/secret.$1"
}

run() { # run COMMAND…: the daemon itself, called by `launch`
  if [ "$(place)" = inside ]; then start "$NAME" nsenter --net="$NETNS" "$@"; else start "$NAME" "$@"; fi
}

server_up() {
  local belongs
  belongs=$(place_now)
  if alive "$NAME" && [ "$(place)" != "$belongs" ]; then
    progress "$NAME moves: it now belongs $belongs"
    server_down
  fi
  if ! alive "$NAME"; then
    mkdir -p "$STATE" "$RUN/env"
    chmod 711 "$RUN/servers" "$STATE"
    echo "$belongs" >"$STATE/place"
    launch
  fi
  wait_until 240 "$NAME" ready_or_dead
  alive "$NAME" || die "$NAME has ended; its log is $RUN/log/$NAME.log"
  exports | put "$RUN/env/20-$NAME"
}
ready_or_dead() { ! alive "$NAME" || ready; }

server_down() {
  stop "$NAME" 20
  rm -rf --one-file-system "$STATE" "$RUN/env/20-$NAME"
}

# serve COMMAND: what each server's script understands.
serve() {
  case ${1:-} in
  up) server_up ;;
  down) server_down ;;
  # For tests of what happens when it goes away; what it has stored stays.
  stop) stop "$NAME" 20 ;;
  kill) kill_now "$NAME" ;;
  restart)
    stop "$NAME" 20
    server_up
    ;;
  *) die "usage: $0 up|down|stop|kill|restart" ;;
  esac
}
