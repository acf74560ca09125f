#!/usr/bin/env bash
# Fetches pouchdb-server from npm into the cache, once, and prints its path. The tests of this folder look there.
# Its databases in memory need none of the compiled parts, so no package's install script is run.
set -euo pipefail

version=4.2.0
folder=${CHANDLER_CACHE:-$HOME/.cache/chandler}/testbed/pouchdb-server-$version
program=$folder/node_modules/pouchdb-server/bin/pouchdb-server

if [[ ! -e $program ]]; then
  rm -rf "$folder.new"
  mkdir -p "$folder.new"
  npm install --prefix "$folder.new" --ignore-scripts --no-audit --no-fund --no-package-lock "pouchdb-server@$version" >&2
  rm -rf "$folder"
  mv "$folder.new" "$folder"
fi
echo "$program"
