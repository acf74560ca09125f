# What is in each image: sourced by `build`. One function per image fills the directory $ROOT and sets `tag` and `command`.
#
# The programs come from this machine's Debian packages with the libraries they need, from Go modules, or from Maven.
# Every image has busybox as its shell and small tools; none has a fixed user, the pods say as whom they run.
# shellcheck shell=bash disable=SC2034

IMAGES=(pause coredns postgres redis nats tools minio cassandra)
declare -A COMES_FROM=( # Debian packages whose version makes another image
  [pause]='' [coredns]='' [nats]='' [minio]=''
  [postgres]='postgresql-common libc6 tzdata' [redis]='redis-server redis-tools libc6' [tools]='redis-tools libpq5 curl libc6'
  [cassandra]='openjdk-17-jre-headless libc6'
)

POSTGRES_BIN=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1 | xargs -r dirname)
POSTGRES_MAJOR=$(basename "$(dirname "${POSTGRES_BIN:-/none/none}")")
JAVA_HOME_17=$(compgen -G '/usr/lib/jvm/java-17-openjdk-*' | head -n 1)

image_pause() {
  tag=1 command='["/pause"]'
  cc -static -Os -s -o "$ROOT/pause" "$KUBERNETES/images/pause.c"
}

image_coredns() {
  tag=$COREDNS_VERSION command='["/coredns"]'
  cp "$COREDNS_BIN/coredns" "$ROOT/coredns"
}

image_postgres() {
  tag=$POSTGRES_MAJOR command='["postgres"]'
  path=$POSTGRES_BIN
  base postgres 999
  local name programs=() extensions share=/usr/share/postgresql/$POSTGRES_MAJOR lib=/usr/lib/postgresql/$POSTGRES_MAJOR/lib
  for name in initdb postgres pg_isready psql pg_ctl pg_dump pg_dumpall pg_restore pg_controldata; do
    programs+=("$POSTGRES_BIN/$name")
  done
  # All but the compiler of queries, which is larger than the rest together.
  mapfile -t extensions < <(find "$lib" -maxdepth 1 -name '*.so' ! -name 'llvmjit*')
  with_libraries "${programs[@]}" "${extensions[@]}"
  as_is "$share" /usr/share/zoneinfo /usr/lib/locale/C.utf8
}

image_redis() {
  tag=$(redis-server --version | sed 's/.* v=\([0-9.]*\) .*/\1/') command='["redis-server"]'
  base redis 999
  with_libraries /usr/bin/redis-server /usr/bin/redis-cli
  ln -s redis-server "$ROOT/usr/bin/redis-sentinel"
}

image_nats() {
  tag=$NATS_VERSION command='["nats-server"]'
  base nats 1000
  cp "$(nats_server)" "$ROOT/usr/bin/nats-server"
  ln -s usr/bin/nats-server "$ROOT/nats-server" # where the usual image has it
}

image_tools() {
  tag=1 command='["sh"]'
  path=$POSTGRES_BIN
  base app 1000
  with_libraries "$POSTGRES_BIN/psql" "$POSTGRES_BIN/pg_isready" /usr/bin/redis-cli /usr/bin/curl
  as_is /usr/lib/locale/C.utf8
}

image_minio() {
  tag=$MINIO_VERSION command='["minio", "server", "/data"]'
  base minio 1000
  cp "$(minio)" "$ROOT/usr/bin/minio"
}

image_cassandra() {
  local distribution files
  distribution=$("$TESTBED/servers/cassandra/distribution")
  tag=$(sed -n 's#.*<version.cassandra>\(.*\)</version.cassandra>.*#\1#p' "$TESTBED/servers/cassandra/pom.xml") command='["cassandra", "-f"]'
  path=/opt/cassandra/bin:/opt/java/bin
  base cassandra 999
  mkdir -p "$ROOT/opt/java"
  # The runtime alone, with what Debian keeps in /etc in its place.
  tar -C "$JAVA_HOME_17" -ch --exclude=./jmods --exclude=./man --exclude=./include --exclude=./legal --exclude=./docs \
    --exclude='*.src.zip' --exclude=./lib/src.zip --exclude=./lib/ct.sym . | tar -C "$ROOT/opt/java" -x
  mapfile -t files < <(find "$JAVA_HOME_17/lib" -name '*.so')
  libraries_of "$JAVA_HOME_17/bin/java" "${files[@]}"
  cp -r "$distribution" "$ROOT/opt/cassandra"
}
