# Sourced by the other scripts: where the repository and the cache are, and how to speak.
# shellcheck shell=bash
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$REPO"

# Outside the clone, so that a fresh clone does not build and install everything again.
CHANDLER_CACHE=${CHANDLER_CACHE:-${HOME:-/root}/.cache/chandler}
export CHANDLER_CACHE
if [ -z "${CARGO_TARGET_DIR:-}" ] && mkdir -p "$CHANDLER_CACHE/target" 2>/dev/null && [ -w "$CHANDLER_CACHE/target" ]; then
  export CARGO_TARGET_DIR=$CHANDLER_CACHE/target
fi

say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}
