# Servers that are Go programs, for the images and for plain servers alike: each function builds one once into the cache
# and prints where it is.
# shellcheck shell=bash

NATS_VERSION=2.14.9
MINIO_VERSION=2026.02 # ours: the module has no versions, only states
MINIO_STATE=v0.0.0-20260212201848-7aac2a2c5b7c

# go_program NAME VERSION PACKAGE@MODULE_VERSION
go_program() {
  local out=$CACHE/$1-$2
  if [ ! -x "$out/$1" ]; then
    progress "building $1 $2 …"
    CGO_ENABLED=0 GOBIN=$out.new GOFLAGS='-buildvcs=false -trimpath' go install -ldflags='-s -w' "$3" >&2
    mkdir -p "$out"
    mv "$out.new/$1" "$out/$1"
    rmdir "$out.new"
  fi
  echo "$out/$1"
}

nats_server() { go_program nats-server "$NATS_VERSION" "github.com/nats-io/nats-server/v2@v$NATS_VERSION"; }
minio() { go_program minio "$MINIO_VERSION" "github.com/minio/minio@$MINIO_STATE"; }
