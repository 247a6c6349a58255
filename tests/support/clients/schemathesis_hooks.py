"""Teaches schemathesis that AWS's media type is JSON."""

import json

import schemathesis

AWS_JSON = "application/x-amz-json-1.1"

schemathesis.serializer.alias(AWS_JSON, "application/json")


@schemathesis.deserializer(AWS_JSON)
def deserialized(_context, response):
    return json.loads(response.content)
