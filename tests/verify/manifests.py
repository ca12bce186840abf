"""Judges Kubernetes manifests by the schemas of Kubernetes itself, and prints what is in them.

Arguments: the versions of Kubernetes, separated by commas; then the files. Every document has to be of a kind that each of
these versions knows, with no field that it does not know. Prints a JSON object: the file's name, and its documents. Not
judged: kustomization.yaml, which is no resource.
"""

import json
import pathlib
import sys

import kubernetes_validate
import yaml

versions = sys.argv[1].split(",")
found = {}
for path in map(pathlib.Path, sys.argv[2:]):
    found[path.name] = list(yaml.safe_load_all(path.read_text()))
    if path.name == "kustomization.yaml":
        continue
    for document in found[path.name]:
        for version in versions:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except Exception as error:
                sys.exit(f"{path}: {document.get('kind')} in Kubernetes {version}: {error}")
print(json.dumps(found))
