#!/usr/bin/env bash
# Checks the dependencies against deny.toml with cargo-deny, which it builds once into the cache.
#
# Known vulnerabilities need the advisory database from the network. Where that cannot be had,
# this says so and passes on the rest: it never claims a check that was not made.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

version=0.20.2
tools=$CHANDLER_CACHE/tools
export PATH=$tools/bin:$PATH

if [ "$(cargo deny --version 2>/dev/null)" != "cargo-deny $version" ]; then
  say "Building cargo-deny $version into $tools (once, a few minutes) ..."
  # Not tuned for speed: it runs for a second, and builds much faster so.
  CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install --quiet --locked --root "$tools" "cargo-deny@$version"
fi

cargo deny --log-level warn check bans licenses sources

if timeout 60 cargo deny --log-level off fetch db >/dev/null 2>&1; then
  cargo deny --log-level warn check advisories
else
  say "deny: bans, licences and sources are in order; NOT checked: advisories (the advisory database cannot be fetched from here)"
fi
