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
  # As its own Makefile does: otherwise it takes itself for a Helm of Kubernetes 1.20.
  local flags='-s -w' package
  for package in pkg/chartutil pkg/lint/rules; do
    flags+=" -X helm.sh/helm/v3/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/$package.k8sVersionMinor=37"
  done
  flags+=" -X helm.sh/helm/v3/internal/version.version=v$helm_version"
  mkdir -p "$made"
  if ! GOBIN=$made GOFLAGS='' CGO_ENABLED=0 go install -trimpath -ldflags="$flags" "helm.sh/helm/v3/cmd/helm@v$helm_version"; then
    rm -rf "$made"
    return 1
  fi
  mkdir -p "$(dirname "$helm")"
  mv "$made/helm" "$helm"
  rmdir "$made"
}
