#!/usr/bin/env python3
"""pack.py OUT.tar NAME TAG ARCHITECTURE CONFIG_JSON ROOT_DIRECTORY

Packs a directory as an OCI image archive of one layer that `ctr images import` loads without a registry, under
NAME:TAG and under NAME@sha256:…, so that pods may name it by digest. The same files give the same digest: owners,
times and order are fixed, modes are reduced to "may be run" or not. Prints the full reference NAME:TAG@sha256:….
"""

import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import tempfile


def entries(root):
    """All paths below root in a fixed order, directories before what is in them."""
    for directory, names, files in os.walk(root):
        names.sort()
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        for name in sorted(names + files):
            yield os.path.relpath(os.path.join(directory, name), root)
        for link in links:
            names.remove(link)


def write_layer(root, out):
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as layer:
        for path in entries(root):
            full = os.path.join(root, path)
            info = layer.gettarinfo(full, arcname=path)
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            if info.islnk():  # two names of one file: the second is a copy, so that order cannot matter
                info.type, info.linkname, info.size = tarfile.REGTYPE, "", os.stat(full).st_size
            if info.isdir():
                info.mode = 0o1777 if os.stat(full).st_mode & stat.S_ISVTX else 0o755
            elif not info.issym():
                info.mode = 0o755 if os.stat(full).st_mode & stat.S_IXUSR else 0o644
            if info.isreg():
                with open(full, "rb") as content:
                    layer.addfile(info, content)
            else:
                layer.addfile(info)


def digest_of(stream):
    stream.seek(0)
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def main():
    out, name, tag, architecture, config, root = sys.argv[1:]
    with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(out))) as layer:
        write_layer(root, layer)
        layer_digest, layer_size = digest_of(layer), layer.tell()
        image = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": json.loads(config),
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            },
            sort_keys=True,
        ).encode()
        image_digest = hashlib.sha256(image).hexdigest()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": f"sha256:{image_digest}",
                    "size": len(image),
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.oci.image.layer.v1.tar",
                        "digest": f"sha256:{layer_digest}",
                        "size": layer_size,
                    }
                ],
            },
            sort_keys=True,
        ).encode()
        manifest_digest = hashlib.sha256(manifest).hexdigest()
        index = {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": f"sha256:{manifest_digest}",
                    "size": len(manifest),
                    "platform": {"os": "linux", "architecture": architecture},
                    "annotations": {"io.containerd.image.name": reference},
                }
                for reference in (f"{name}:{tag}", f"{name}@sha256:{manifest_digest}")
            ],
        }
        with tarfile.open(out + ".new", "w", format=tarfile.GNU_FORMAT) as archive:

            def add(path, content, size=None):
                info = tarfile.TarInfo(path)
                info.size = len(content) if size is None else size
                archive.addfile(info, io.BytesIO(content) if size is None else content)

            add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            add("index.json", json.dumps(index, sort_keys=True).encode())
            add(f"blobs/sha256/{manifest_digest}", manifest)
            add(f"blobs/sha256/{image_digest}", image)
            layer.seek(0)
            add(f"blobs/sha256/{layer_digest}", layer, layer_size)
    os.rename(out + ".new", out)
    print(f"{name}:{tag}@sha256:{manifest_digest}")


main()
