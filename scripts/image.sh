#!/usr/bin/env bash
# Makes an image of the release binary, without a container engine: scripts/image.sh [REFERENCE]
#
# The archive (`image/chandler.tar` in cargo's target directory, or OUT) is an OCI layout that `docker load` understands too.
# In it are the program, the shared libraries it needs, and CA certificates; no shell, nothing that can be written. The
# catalog is part of the program. The same program on the same machine gives the same digest. CHANDLER names a program to
# take instead of building one. Prints the reference and the digest of the image.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

uid=65532
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
reference=${1:-localhost/chandler:$version}
[[ $reference == */*:* && $reference != *@* ]] || die "the reference must have a name and a tag, such as registry.example.com/chandler:$version"

target=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)
chandler=${CHANDLER:-}
if [ -z "$chandler" ]; then
  say "Building (the first time takes minutes) …"
  cargo build --release --locked --quiet
  chandler=$target/release/chandler
fi
out=${OUT:-$target/image/chandler.tar}
case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) die "no image can be made for $(uname -m)" ;;
esac

room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
base=$room/base app=$room/app layout=$room/layout
mkdir -p "$base/etc/ssl/certs" "$base/usr/share/doc" "$app/usr/bin" "$app/usr/share/doc/chandler" "$layout/blobs/sha256"

# The layer that seldom changes: what the program is linked with, and the few files that libraries look for.
# `ldd` names the loader and every library; they go where the loader looks for them.
mapfile -t libraries < <(ldd "$chandler" | grep -o '/[^ )]*' | sort)
[ ${#libraries[@]} -gt 0 ] || say "The program is linked statically: no library goes into the image."
for library in "${libraries[@]}"; do
  mkdir -p "$base$(dirname "$library")"
  cp -L "$library" "$base$library"
  package=$( (dpkg-query -S "$library" "$(readlink -f "$library")" 2>/dev/null || true) | head -n 1 | cut -d: -f1)
  if [ -n "$package" ] && [ -e "/usr/share/doc/$package/copyright" ]; then
    mkdir -p "$base/usr/share/doc/$package"
    cp -L "/usr/share/doc/$package/copyright" "$base/usr/share/doc/$package/"
  fi
done
printf 'root:x:0:0:root:/:/sbin/nologin\nchandler:x:%s:%s:chandler:/:/sbin/nologin\n' $uid $uid >"$base/etc/passwd"
printf 'root:x:0:\nchandler:x:%s:\n' $uid >"$base/etc/group"
printf 'hosts: files dns\n' >"$base/etc/nsswitch.conf"
certificates=/etc/ssl/certs/ca-certificates.crt
if [ -r $certificates ]; then
  cp -L $certificates "$base$certificates"
else
  say "There is no $certificates: the image trusts no public certificate authority."
fi

cp "$chandler" "$app/usr/bin/chandler"
cp LICENSE "$app/usr/share/doc/chandler/"
find "$base" "$app" -type d -exec chmod 755 {} +
find "$base" "$app" -type f -exec chmod 644 {} +
find "$base" -type f -path '*/ld-linux*' -exec chmod 755 {} +
chmod 755 "$app/usr/bin/chandler"

# blob FILE MEDIA_TYPE: keeps the file under its digest, and prints its descriptor.
blob() {
  local sum
  sum=$(sha256sum "$1" | cut -d' ' -f1)
  cp "$1" "$layout/blobs/sha256/$sum"
  jq -cn --arg type "$2" --arg digest "sha256:$sum" --argjson size "$(stat -c %s "$1")" \
    '{mediaType: $type, digest: $digest, size: $size}'
}
archive() { tar --create --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --directory "$1" .; }

layers='[]' contents='[]'
for layer in "$base" "$app"; do
  archive "$layer" >"$layer.tar"
  gzip --no-name --stdout "$layer.tar" >"$layer.tar.gz"
  contents=$(jq -c --arg sum "sha256:$(sha256sum "$layer.tar" | cut -d' ' -f1)" '. + [$sum]' <<<"$contents")
  descriptor=$(blob "$layer.tar.gz" application/vnd.oci.image.layer.v1.tar+gzip)
  layers=$(jq -c --argjson layer "$descriptor" '. + [$layer]' <<<"$layers")
done

jq -cn --arg architecture $architecture --arg version "$version" --arg user "$uid:$uid" --argjson contents "$contents" '{
  architecture: $architecture, os: "linux", created: "1970-01-01T00:00:00Z",
  config: {
    User: $user, WorkingDir: "/",
    Env: ["PATH=/usr/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
    Entrypoint: ["/usr/bin/chandler"], Cmd: ["serve", "--config", "/etc/chandler/chandler.yaml"],
    ExposedPorts: {"8080/tcp": {}, "8081/tcp": {}}, StopSignal: "SIGTERM",
    Labels: {
      "org.opencontainers.image.title": "chandler",
      "org.opencontainers.image.description": "A service broker (Open Service Broker API v2.17)",
      "org.opencontainers.image.version": $version,
      "org.opencontainers.image.licenses": "Apache-2.0",
      "org.opencontainers.image.source": "https://github.com/chandler-broker/chandler"
    }
  },
  rootfs: {type: "layers", diff_ids: $contents},
  history: [
    {created: "1970-01-01T00:00:00Z", created_by: "libraries"},
    {created: "1970-01-01T00:00:00Z", created_by: "chandler"}
  ]
}' >"$room/config.json"
config=$(blob "$room/config.json" application/vnd.oci.image.config.v1+json)
jq -cn --argjson config "$config" --argjson layers "$layers" '{
  schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: $layers
}' >"$room/manifest.json"
manifest=$(blob "$room/manifest.json" application/vnd.oci.image.manifest.v1+json)

printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
jq -cn --argjson manifest "$manifest" --arg reference "$reference" '{
  schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
  manifests: [$manifest + {annotations: {
    "io.containerd.image.name": $reference, "org.opencontainers.image.ref.name": ($reference | split(":")[-1])
  }}]
}' >"$layout/index.json"
# For `docker load`, which looks for this file.
jq -cn --argjson config "$config" --argjson layers "$layers" --arg reference "$reference" '
  def path: "blobs/sha256/" + (.digest | ltrimstr("sha256:"));
  [{Config: ($config | path), RepoTags: [$reference], Layers: [$layers[] | path]}]
' >"$layout/manifest.json"

mkdir -p "$(dirname "$out")"
archive "$layout" >"$out.part"
mv "$out.part" "$out"
say "$out: $(stat -c %s "$out" | awk '{printf "%.1f MB", $1 / 1e6}'), program $(stat -c %s "$chandler" | awk '{printf "%.1f MB", $1 / 1e6}')"
printf '%s %s\n' "$reference" "$(jq -r .digest <<<"$manifest")"
