#!/usr/bin/env python3
"""Makes an image and pushes it to the lab's registry over plain HTTP; the last line printed is the reference for a pod.

push.py REGISTRY NAME:TAG FILE...          files at the root of one layer, the first one the entry point
push.py REGISTRY NAME:TAG ROOTFS.tar       the tar as the one layer
push.py REGISTRY NAME:TAG IMAGE.oci.tar    an OCI layout, pushed as it is
Options: --user USER, --workdir DIR, --env K=V and --annotation K=V (repeatable; the manifest's), and last
--entrypoint ARG... (takes all that follows).
"""
import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request

OCI = "application/vnd.oci.image."
MANIFEST = OCI + "manifest.v1+json"


class Registry:
    def __init__(self, address, name):
        self.root = f"http://{address}"
        self.base = f"{self.root}/v2/{name}"

    def call(self, method, url, data=None, headers=None):
        request = urllib.request.Request(urllib.parse.urljoin(self.root, url), data=data, method=method, headers=headers or {})
        return urllib.request.urlopen(request, timeout=300)

    def has_blob(self, digest):
        try:
            return self.call("HEAD", f"{self.base}/blobs/{digest}").status == 200
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise

    def blob(self, stream, digest, size):
        """Uploads what the stream holds from its present position."""
        if self.has_blob(digest):
            return
        where = self.call("POST", f"{self.base}/blobs/uploads/").headers["Location"]
        where += ("&" if "?" in where else "?") + "digest=" + digest
        self.call("PUT", where, stream, {"Content-Type": "application/octet-stream", "Content-Length": str(size)})

    def bytes(self, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blob(io.BytesIO(data), digest, len(data))
        return {"digest": digest, "size": len(data)}

    def manifest(self, reference, media_type, data):
        reply = self.call("PUT", f"{self.base}/manifests/{reference}", data, {"Content-Type": media_type})
        return reply.headers["Docker-Content-Digest"]


def layer_of_files(files):
    """The same bytes for the same files, so that a second push finds the blob there."""
    layer = tempfile.TemporaryFile()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for file in files:
            entry = tar.gettarinfo(file, arcname=os.path.basename(file))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = "root"
            entry.mode |= 0o555
            with open(file, "rb") as content:
                tar.addfile(entry, content)
    return layer


def push_layer(registry, tag, layer, config, annotations):
    layer.seek(0)
    digest = "sha256:" + hashlib.file_digest(layer, "sha256").hexdigest()
    size = layer.tell()
    layer.seek(0)
    registry.blob(layer, digest, size)
    image = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": [digest]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": OCI + "config.v1+json", **registry.bytes(json.dumps(image).encode())},
        "layers": [{"mediaType": OCI + "layer.v1.tar", "digest": digest, "size": size}],
    }
    if annotations:
        manifest["annotations"] = annotations
    return registry.manifest(tag, MANIFEST, json.dumps(manifest).encode())


def push_layout(registry, tag, tar):
    """Pushes the one image, or index, that the layout's index.json names."""

    def member(digest):
        path = "blobs/" + digest.replace(":", "/")
        for name in (path, "./" + path):
            try:
                return tar.extractfile(name)
            except KeyError:
                continue
        sys.exit(f"the OCI layout has no blob {digest}")

    def push(descriptor, reference):
        data = member(descriptor["digest"]).read()
        document = json.loads(data)
        for child in document.get("manifests", []):
            push(child, child["digest"])
        for child in [document[key] for key in ("config",) if key in document] + document.get("layers", []):
            registry.blob(member(child["digest"]), child["digest"], child["size"])
        return registry.manifest(reference, descriptor.get("mediaType", MANIFEST), data)

    names = tar.getnames()
    index = json.load(tar.extractfile("index.json" if "index.json" in names else "./index.json"))
    if len(index["manifests"]) != 1:
        sys.exit(f"the OCI layout names {len(index['manifests'])} images; push one at a time")
    return push(index["manifests"][0], tag)


def is_layout(tar):
    return any(name in ("oci-layout", "./oci-layout") for name in tar.getnames())


def main():
    parser = argparse.ArgumentParser(prog="e2e/lab push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("registry", help=argparse.SUPPRESS)
    parser.add_argument("reference", metavar="NAME:TAG")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--user")
    parser.add_argument("--workdir")
    parser.add_argument("--env", action="append", default=[], metavar="K=V")
    parser.add_argument("--annotation", action="append", default=[], metavar="K=V")
    parser.add_argument("--entrypoint", nargs=argparse.REMAINDER, default=[], metavar="ARG")
    options = parser.parse_args()
    name, _, tag = options.reference.rpartition(":")
    if not name or "/" in tag:
        parser.error(f"'{options.reference}' is not NAME:TAG")
    for file in options.files:
        if not os.path.isfile(file):
            parser.error(f"there is no file {file}")

    registry = Registry(options.registry, name)
    config = {"Entrypoint": options.entrypoint, "User": options.user, "WorkingDir": options.workdir, "Env": options.env}
    annotations = dict(annotation.split("=", 1) for annotation in options.annotation)

    def push_one(layer):
        return push_layer(registry, tag, layer, {key: value for key, value in config.items() if value}, annotations)

    first = options.files[0]
    try:
        if len(options.files) == 1 and tarfile.is_tarfile(first):
            with tarfile.open(first, "r:") as tar:
                layout = is_layout(tar)
                digest = push_layout(registry, tag, tar) if layout else None
            if not layout:
                with open(first, "rb") as layer:
                    digest = push_one(layer)
        else:
            config["Entrypoint"] = options.entrypoint or ["/" + os.path.basename(first)]
            digest = push_one(layer_of_files(options.files))
    except urllib.error.HTTPError as error:
        sys.exit(f"the registry refused {error.url}: {error} {error.read().decode(errors='replace')}")
    except tarfile.ReadError as error:
        sys.exit(f"{first} cannot be read as an uncompressed tar: {error}")
    except urllib.error.URLError as error:
        sys.exit(f"the lab's registry does not answer ({error.reason}); is the lab up? e2e/lab status")
    print(digest)
    print(f"{options.registry}/{options.reference}")


main()
