"""Verifies, with other people's libraries, what the receiver sent.

Standard input: {"secret": …, "requests": [{"headers": {…}, "body": BASE64}, …], "lines": [TEXT, …]}.
Every request has to carry a good Standard Webhooks signature, if there is a secret.
Standard output: the CloudEvents in the requests and lines, each as its attributes and its data.
"""

import base64
import gzip
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook

JSON = JSONFormat()
BATCH = "application/cloudevents-batch+json"


def main():
    given = json.load(sys.stdin)
    events = []
    for request in given.get("requests", []):
        events.extend(of_request(request, given.get("secret")))
    for line in given.get("lines", []):
        events.append(JSON.read(None, line))
    json.dump([shown(event) for event in events], sys.stdout)


def of_request(request, secret):
    headers, body = request["headers"], base64.b64decode(request["body"])
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    if secret is not None:
        Webhook(secret).verify(body, headers, json_parse=False)
    if headers["content-type"] == BATCH:
        return [JSON.read(None, json.dumps(event)) for event in json.loads(body)]
    if "ce-specversion" in headers:
        return [from_http(HTTPMessage(headers=headers, body=body), JSON)]
    return []


def shown(event):
    attributes = {name: str(value) for name, value in event.get_attributes().items()}
    attributes["time"] = event.get_time().isoformat()
    return {"attributes": attributes, "data": event.get_data()}


main()
