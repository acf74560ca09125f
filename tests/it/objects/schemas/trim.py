"""Trims the API schemas of one Kubernetes version to the kinds a catalog may use.

    trim.py FOLDER VERSION >VERSION.json

FOLDER is `kubernetes-json-schema` of the Python package kubernetes-validate (1.37.0 was used), which carries the schemas
that Kubernetes publishes (Apache License 2.0). Descriptions go; unknown members stay refused.
"""

import json
import sys

KINDS = {
    ("", "v1"): ["ConfigMap", "PersistentVolumeClaim", "Secret", "Service", "ServiceAccount"],
    ("apps", "v1"): ["Deployment", "StatefulSet"],
    ("batch", "v1"): ["CronJob", "Job"],
    ("autoscaling", "v2"): ["HorizontalPodAutoscaler"],
    ("networking.k8s.io", "v1"): ["NetworkPolicy"],
    ("policy", "v1"): ["PodDisruptionBudget"],
}
DROPPED = ("description", "default", "$schema")


def clean(value, names=False):
    """Without what does not decide; `names`: the members are names of properties, not words of the schema."""
    if isinstance(value, list):
        return [clean(item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for key, item in value.items():
        if not names and (key in DROPPED or key.startswith("x-")):
            continue
        if key == "$ref" and isinstance(item, str):
            item = "#/$defs/" + item.split("/")[-1]
        else:
            item = clean(item, key in ("properties", "$defs") and not names)
        if key == "type" and isinstance(item, list):
            item = [kind for kind in item if kind != "null"]
            item = item[0] if len(item) == 1 else item
        out[key] = item
    return out


def references(value):
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref" and isinstance(item, str):
                yield item.split("/")[-1]
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def main(folder, version):
    with open(f"{folder}/v{version}.0-local-strict/_definitions.json", encoding="utf-8") as file:
        document = json.load(file)
    definitions = document.get("$defs") or document["definitions"]
    kinds = {}
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            group, version = kind["group"], kind["version"]
            if kind["kind"] in KINDS.get((group, version), []):
                kinds[f"{group}/{version}/{kind['kind']}".lstrip("/")] = name
    kept, todo = {}, list(kinds.values())
    while todo:
        name = todo.pop()
        if name not in kept:
            kept[name] = clean(definitions[name])
            todo.extend(references(kept[name]))
    json.dump({"kinds": kinds, "$defs": kept}, sys.stdout, sort_keys=True, separators=(",", ":"))
    print()


main(*sys.argv[1:])
