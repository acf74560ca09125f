#!/usr/bin/env bash
# Makes the generated files anew: the OpenAPI document, the configuration's schema and reference, the catalogue table, and
# what the chart has of them.
# With --check nothing is changed: it fails when a committed file is not what the code makes.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

generate() {
  cargo run --quiet -- generate --dir "$1"
  # The chart's `config` is the broker's own configuration: a wrong setting is refused before anything is installed.
  local schema=charts/chandler/values.schema.json made
  made=$(jq --slurpfile config "$1/docs/config.schema.json" '.properties.config = ($config[0] | del(.["$schema"]))' $schema)
  mkdir -p "$1/charts/chandler"
  printf '%s\n' "$made" >"$1/$schema"
}

if [ "${1:-}" != --check ]; then
  generate .
  exit 0
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate "$fresh"
count=0
stale=0
while IFS= read -r -d '' file; do
  count=$((count + 1))
  if ! diff -u --label "$file (committed)" --label "$file (generated)" "$file" "$fresh/$file" | head -n 40 >&2; then
    stale=$((stale + 1))
  fi
done < <(cd "$fresh" && find . -type f -printf '%P\0')
[ "$count" -gt 0 ] || die "nothing was generated"
[ "$stale" = 0 ] || die "$stale of $count generated files are stale; run \`make gen\` and commit what it changes"
say "generated files: $count, all fresh"
