# Sourced by `up`: what `chandler serve --config tests/testbed/chandler.yaml` needs, and that file.
#
# The broker is the service account chandler/chandler and nobody else. It may do nothing until somebody applies what
# `chandler rbac` prints. Password and key are made once for each fresh start; all but the file itself is in the state
# that `down` removes.
# shellcheck shell=bash

place=$RUN/chandler
mkdir -p -m 700 "$place"
node_kubectl apply --server-side --force-conflicts -f - >/dev/null <<END
apiVersion: v1
kind: Namespace
metadata: {name: chandler, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: chandler, namespace: chandler}
END
(
  umask 077
  [ -s "$place/password" ] || head -c 24 /dev/urandom | base64 | tr -d '\n/+' >"$place/password"
  [ -s "$place/seal.key" ] || head -c 32 /dev/urandom | base64 >"$place/seal.key"
  put "$place/kubeconfig" <<END
apiVersion: v1
kind: Config
clusters: [{name: testbed, cluster: {server: "$API", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users: [{name: chandler, user: {token: $(node_kubectl -n chandler create token chandler --duration=48h)}}]
contexts: [{name: testbed, context: {cluster: testbed, user: chandler}}]
current-context: testbed
END
)
image() { awk '$1 == "'"$1"'" { print $3 }' <<<"$images"; }
put "$TESTBED/chandler.yaml" <<END
# Made by \`tests/testbed/up\` for the node that runs now:
#
#   chandler rbac --config tests/testbed/chandler.yaml | kubectl apply -f -
#   tests/testbed/enter chandler serve --config tests/testbed/chandler.yaml
#
# Platform and user are \`testbed\`, the password is in the file below; http://127.0.0.1:8080 inside the testbed's network.
http: {listen: "127.0.0.1:8080"}
store: {url: "sqlite://$place/chandler.db"}
secrets: {keys: [{label: testbed, file: "$place/seal.key"}]}
platforms: [{name: testbed, credentials: [{username: testbed, password_file: "$place/password"}]}]
log: {format: text}
provisioner:
  kind: kubernetes
  kubernetes:
    kubeconfig: "$place/kubeconfig"
    images:
      # The catalog's images are not to be had without a registry: these are the same servers from Debian's packages.
      replace:
        docker.io/library/postgres: $(image postgres)
        docker.io/valkey/valkey: $(image redis)
        docker.io/library/nats: $(image nats)
        docker.io/library/cassandra: $(image cassandra)
        docker.io/pgsty/minio: $(image minio)
END
