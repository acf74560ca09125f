# Sourced by the demos: steps with their times, as a person wants to see them.
# shellcheck shell=bash

bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' plain=$'\e[0m'
if [ ! -t 1 ] || [ -n "${NO_COLOR:-}" ]; then bold='' dim='' green='' plain=''; fi

mark=$(date +%s%N)
since() { # seconds since the last mark, and a new mark
  local now
  now=$(date +%s%N)
  awk -v ns=$((now - mark)) 'BEGIN { printf "%.2f s", ns / 1e9 }'
  mark=$now
}
step() { number=$((${number:-0} + 1)) && mark=$(date +%s%N) && printf '\n%s%d  %s%s\n' "$bold" "$number" "$1" "$plain"; }
tell() { printf '   %s\n' "$*"; }
good() { printf '   %s✓%s %s  %s(%s)%s\n' "$green" "$plain" "$1" "$dim" "$(since)" "$plain"; }
shown() { printf '   %s$ %s%s\n' "$dim" "$1" "$plain"; }
