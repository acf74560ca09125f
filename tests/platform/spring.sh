#!/usr/bin/env bash
# Builds the Spring example (examples/fetch/spring) with Maven into the cache, once for each state of its sources, and
# prints the jar's path. The tests of this folder look there. Needs a JDK of version 17 or newer and Maven.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../examples/fetch/spring" && pwd)
hash=$(cd "$here" && find . -type f -not -path './target/*' | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-8)
folder=${CHANDLER_CACHE:-$HOME/.cache/chandler}/testbed/spring-$hash
jar=$folder/fetch.jar

if [[ ! -e $jar ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cp -r "$here/." "$work"
  rm -rf "$work/target"
  mvn --quiet --batch-mode --file "$work/pom.xml" -DskipTests package >&2
  mkdir -p "$folder"
  cp "$work/target/fetch-1.jar" "$jar.new"
  mv "$jar.new" "$jar"
fi
echo "$jar"
