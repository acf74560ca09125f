# Sourced by scripts that need Helm: sets $helm, after building it into the cache when it is not there.
#
# From its Go module, so that nothing but the Go module proxy is asked; once, some three minutes.
# shellcheck shell=bash
helm_version=3.22.0
helm=$CHANDLER_CACHE/tools/helm-$helm_version/helm

# Succeeds when $helm can be used.
have_helm() {
  [ ! -x "$helm" ] || return 0
  command -v go >/dev/null || return 1
  local made=$CHANDLER_CACHE/tools/helm-$helm_version.$$
  say "Building Helm $helm_version into $(dirname "$helm") (once, some minutes) …"
  mkdir -p "$made"
  if ! GOBIN=$made GOFLAGS='' CGO_ENABLED=0 go install -trimpath -ldflags='-s -w' "helm.sh/helm/v3/cmd/helm@v$helm_version"; then
    rm -rf "$made"
    return 1
  fi
  mkdir -p "$(dirname "$helm")"
  mv "$made/helm" "$helm"
  rmdir "$made"
}
