"""Reads, with OpenTelemetry's own protobuf definitions, what a collector was sent.

Standard input: a JSON list of requests' bodies in base64.
Standard output: every span in them, in order, with its resource; attributes as objects, ids in hex.
"""

import base64
import json
import sys

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


def main():
    spans = []
    for body in json.load(sys.stdin):
        request = ExportTraceServiceRequest.FromString(base64.b64decode(body))
        # protobuf keeps what it does not know.
        assert request.ByteSize() == len(base64.b64decode(body)), "not all of it was read"
        for of_resource in request.resource_spans:
            resource = attributes(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                spans.extend(shown(span, resource) for span in of_scope.spans)
    json.dump(spans, sys.stdout)


def shown(span, resource):
    return {
        "name": span.name,
        "kind": Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "tracestate": span.trace_state,
        "nanos": span.end_time_unix_nano - span.start_time_unix_nano,
        "attributes": attributes(span.attributes),
        "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
        "status": Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        "reason": span.status.message,
        "resource": resource,
    }


def attributes(pairs):
    return {pair.key: value(MessageToDict(pair.value)) for pair in pairs}


def value(given):
    (kind, plain), = given.items()
    return int(plain) if kind == "intValue" else plain


main()
