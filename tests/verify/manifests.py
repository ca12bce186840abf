"""Judges Kubernetes manifests by the schemas of Kubernetes itself, and prints what is in them.

Arguments: the versions of Kubernetes, separated by commas; then the files. Every document has to be of a kind that each of
these versions knows, with no field that it does not know. Prints a JSON object: the file's name, and its documents. Not
judged: kustomization.yaml, which is no resource. What the Prometheus Operator defines is judged by the schemas below: those of
its definitions (v1), as far as the shipped files use them.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml


def an_object(required, **optional):
    """An object with these members and no others."""
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": "^(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?$"}
SECRET = an_object({"name": TEXT, "key": TEXT}, optional={"type": "boolean"})
ENDPOINT = an_object(
    {"port": TEXT},
    path=TEXT,
    scheme={"enum": ["http", "https"]},
    interval=DURATION,
    scrapeTimeout=DURATION,
    honorLabels={"type": "boolean"},
    authorization=an_object({"credentials": SECRET}, type={"const": "Bearer"}),
)
RULE = an_object({"alert": TEXT, "expr": TEXT}, **{"for": DURATION, "keep_firing_for": DURATION}, labels=LABELS, annotations=LABELS)
SPECS = {
    "PodMonitor": an_object(
        {"selector": an_object({"matchLabels": LABELS}), "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": ENDPOINT}},
        jobLabel=TEXT,
    ),
    "PrometheusRule": an_object(
        {"groups": {"type": "array", "minItems": 1, "items": an_object({"name": TEXT, "rules": {"type": "array", "items": RULE}}, interval=DURATION)}}
    ),
}


def of_the_operator(document):
    """Judges a resource of the Prometheus Operator."""
    head = {"apiVersion": {"const": "monitoring.coreos.com/v1"}, "kind": TEXT, "spec": SPECS[document["kind"]]}
    head["metadata"] = an_object({"name": TEXT}, namespace=TEXT, labels=LABELS)
    jsonschema.validate(document, an_object(head))


versions = sys.argv[1].split(",")
found = {}
for path in map(pathlib.Path, sys.argv[2:]):
    found[path.name] = list(yaml.safe_load_all(path.read_text()))
    if path.name == "kustomization.yaml":
        continue
    for document in found[path.name]:
        if document.get("kind") in SPECS:
            try:
                of_the_operator(document)
            except jsonschema.ValidationError as error:
                sys.exit(f"{path}: {document['kind']}: {error.json_path}: {error.message}")
            continue
        for version in versions:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except Exception as error:
                sys.exit(f"{path}: {document.get('kind')} in Kubernetes {version}: {error}")
print(json.dumps(found))
