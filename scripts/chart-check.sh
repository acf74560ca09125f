#!/usr/bin/env bash
# Is the chart right? Every shape of charts/chandler/ci is linted and rendered, what it configures is shown to the broker
# itself, and what must be refused is refused. Needs no cluster and, once Helm is in the cache, seconds.
#
# CHANDLER names a program to ask instead of building one.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source scripts/helm.sh

if ! have_helm; then
  say "chart: NOT checked, because there is no Helm and no Go to build it with"
  exit 0
fi
chandler=${CHANDLER:-}
if [ -z "$chandler" ]; then
  cargo build --locked --quiet
  chandler=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/debug/chandler
fi

chart=charts/chandler
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
umask 077

wrong=0
fail() {
  say "chart: $*"
  wrong=$((wrong + 1))
}
render() { "$helm" template broker $chart --namespace platform "$@"; }

# given SHAPE: puts the configuration that a shape renders into a directory, with every file it names, as the pod would see it.
password_hash=$(head -c 24 /dev/urandom | base64 -w 0 | "$chandler" platforms hash-password)
given() {
  local dir=$room/$1-files path
  mkdir -p "$dir"
  # The one document's one entry, without its indentation.
  render -f "$chart/ci/$1-values.yaml" --show-only templates/configmap.yaml |
    sed -e '1,/^  chandler\.yaml: |$/d' -e 's/^    //' >"$dir/chandler.yaml"
  while read -r kind path; do
    mkdir -p "$(dirname "$dir/$path")"
    case $kind in
      cert_file | ca_file) printf -- '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n' ;;
      key_file) printf -- '-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n' ;;
      password_hash_file) printf '%s\n' "$password_hash" ;;
      *) head -c 32 /dev/urandom | base64 -w 0 ;;
    esac >"$dir/$path"
  done < <(sed -n 's#.*\b\([a-z_]*file\): \(secrets/.*\)#\1 \2#p' "$dir/chandler.yaml")
  mkdir -p "$dir/catalog.d/plans"
}

# documents FILE: the YAML documents of a file without comments, sorted, because Helm has an order of its own. A folded text
# becomes one line: where it is folded depends on how long the names in it are.
documents() {
  grep -v '^#' "$1" | awk '
    { match($0, /[^ -]/); column = RSTART }
    folding && column > key { sub(/^ +/, ""); printf " %s", $0; next }
    folding { print ""; folding = 0 }
    / >-$/ { sub(/ >-$/, ""); printf "%s", $0; folding = 1; key = column; next }
    { print }
    END { if (folding) print "" }' | awk 'BEGIN { RS = "(^|\n)---\n" } NF { gsub(/\n+$/, ""); gsub(/\n/, "\036"); print }' | sort | tr '\036' '\n'
}

shapes=0
for values in "$chart"/ci/*-values.yaml; do
  shape=$(basename "$values" -values.yaml)
  shapes=$((shapes + 1))
  "$helm" lint --strict --quiet $chart -f "$values" >"$room/said" 2>&1 || fail "$shape is not clean: $(cat "$room/said")"
  # The oldest Kubernetes that is supported, and one that has everything.
  if ! render -f "$values" --kube-version 1.31.0 >"$room/$shape.yaml" 2>"$room/said"; then
    fail "$shape cannot be rendered: $(cat "$room/said")"
    continue
  fi
  render -f "$values" --api-versions monitoring.coreos.com/v1/ServiceMonitor \
    --api-versions monitoring.coreos.com/v1/PrometheusRule >"$room/$shape-monitored.yaml"
  if grep -q '^kind: Secret$' "$room/$shape.yaml"; then fail "$shape makes a Secret of its own"; fi
  given "$shape"
  # The rights a shape gives are those the broker says it needs with the configuration of that very shape.
  if grep -q '^kind: ServiceAccount$' "$room/$shape.yaml"; then
    documents <(render -f "$values" --show-only templates/rbac.yaml) >"$room/given"
    documents <("$chandler" rbac --config "$room/$shape-files/chandler.yaml" --service-account platform/broker-chandler \
      2>/dev/null) >"$room/needed"
    [ -s "$room/needed" ] || fail "no rights are needed for $shape"
    diff -u --label "$shape: what the broker needs" --label "$shape: what the chart gives" "$room/needed" "$room/given" >&2 ||
      fail "$shape does not give the rights that the broker needs; \`make gen\` may help"
  fi
  "$chandler" config check --config "$room/$shape-files/chandler.yaml" >"$room/said" ||
    fail "the broker refuses what $shape configures: $(cat "$room/said")"
done
[ "$shapes" -gt 0 ] || fail "there is no shape in $chart/ci"

# has N KIND SHAPE: how many objects of a kind a shape makes.
has() {
  local count
  count=$(grep -c "^kind: $2\$" "$room/$3.yaml" || true)
  [ "$count" = "$1" ] || fail "$3 has $count of $2, not $1"
}
has 1 PersistentVolumeClaim sqlite
has 0 PersistentVolumeClaim postgres
has 0 PersistentVolumeClaim catalog # an existing one is used
has 1 PodDisruptionBudget ha
has 0 PodDisruptionBudget sqlite
has 0 ServiceMonitor monitoring # the cluster has no such kind
has 1 ServiceMonitor monitoring-monitored
has 1 PrometheusRule monitoring-monitored
has 0 ServiceAccount catalog
has 4 Role secrets # of instances, and in each of three namespaces

# mounts WHAT SHAPE: a line of the broker's volume or of its policy, as it is rendered.
mounts() { grep -qF -- "$1" "$room/$2.yaml" || fail "$2 has no '$1'"; }
mounts '- serviceAccountToken: {audience: "vault", expirationSeconds: 600, path: secrets/vault/token}' vault
mounts 'items: [{key: "root.pem", path: secrets/keycloak/ca.crt}]' vault
mounts '- {key: "secret", path: secrets/vault/secret-id}' vault-approle
mounts '- {key: "key.pem", path: secrets/keycloak/private-key}' vault-approle
mounts '- {port: 8443, protocol: TCP}' vault-approle
mounts '- {port: 8200, protocol: TCP}' vault
if ! render -f $chart/ci/vault-values.yaml --set vault.login.kind=token,vault.login.existingSecret=a |
  grep -qF 'items: [{key: "token", path: secrets/vault/token}]'; then
  fail "the log-in token has no token"
fi
if grep -q serviceAccountToken "$room/vault-approle.yaml" "$room/sqlite.yaml"; then fail "a token for a vault that does not ask for one"; fi

# refused SENTENCE ARGUMENT…: rendering with these arguments fails, and says so.
refused() {
  local sentence=$1
  shift
  if render "$@" >/dev/null 2>"$room/said"; then
    fail "accepted: $*"
  elif ! grep -qF -- "$sentence" "$room/said"; then
    fail "refused without saying '$sentence': $* says $(cat "$room/said")"
  fi
}
least=(-f "$chart/ci/sqlite-values.yaml") two=(-f "$chart/ci/postgres-values.yaml") vault=(-f "$chart/ci/vault-values.yaml")
refused "'secretId' not allowed" "${vault[@]}" --set vault.login.secretId=hunter2
refused "'clientSecret' not allowed" "${vault[@]}" --set keycloak.clientSecret=hunter2
refused "at '/vault/address'" "${vault[@]}" --set vault.address=vault.example.com:8200
refused "at '/vault/login/tokenSeconds'" "${vault[@]}" --set vault.login.tokenSeconds=60
refused 'vault.address and keycloak.url belong together' "${vault[@]}" --set keycloak.url=
refused 'vault.address and keycloak.url belong together' "${vault[@]}" --set vault.address=
refused 'vault.login.existingSecret must be given for vault.login.kind token' "${vault[@]}" --set vault.login.kind=token
refused 'vault.login.existingSecret is only for' "${vault[@]}" --set vault.login.existingSecret=a
refused 'keycloak.existingSecret must be given' "${vault[@]}" --set keycloak.existingSecret=
refused "'replica' not allowed" "${least[@]}" --set replica=2
refused "'retention_dayz' not allowed" "${least[@]}" --set config.osb.retention_dayz=3
refused "'password' not allowed" "${least[@]}" --set 'platforms[0].password=hunter2'
refused "at '/tenancy/mode'" "${least[@]}" --set tenancy.mode=cluster
refused "at '/catalog/configMaps/0/path'" "${least[@]}" --set 'catalog.configMaps[0].name=a,catalog.configMaps[0].path=../x'
refused 'replicas must be 1, not 2' "${least[@]}" --set replicas=2
refused 'either the broker ends TLS or a proxy does' "${least[@]}" --set tls.existingSecret=tls
refused 'tls.existingSecret must be given' "${least[@]}" --set tls.endedByProxy=false
refused 'tenancy.namespace must be given' "${least[@]}" --set tenancy.mode=shared
refused 'tenancy.namespace is only for' "${least[@]}" --set tenancy.namespace=services
refused 'serviceAccount.name must be given' "${least[@]}" --set serviceAccount.create=false
refused 'store.postgres.host must be given' "${least[@]}" --set store.kind=postgres
refused 'store.postgres.existingSecret must be given' "${least[@]}" --set store.kind=postgres
refused 'transport: the chart gives' "${least[@]}" --set config.provisioner.kubernetes.transport=auto
refused 'sealKeys.primary must be given' "${two[@]}" --set sealKeys.primary=
# Nothing is given: everything that is missing is told at once.
for missing in 'image.repository must' 'tls.existingSecret must' 'platforms must' 'sealKeys.keys must'; do refused "$missing"; done

[ "$wrong" = 0 ] || die "the chart has $wrong faults"
say "chart: $shapes shapes, all in order"
