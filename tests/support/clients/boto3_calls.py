"""Makes calls with boto3: argv[1] is a JSON list of [operation, arguments]; a line of JSON for each answer."""

import base64
import datetime
import json
import sys

import boto3
import botocore.exceptions


def plain(value):
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.timezone.utc).isoformat()
    raise TypeError(type(value).__name__)


def failure(error):
    response = getattr(error, "response", {})
    return {
        "error": {
            "type": type(error).__name__,
            "code": response.get("Error", {}).get("Code"),
            "message": response.get("Error", {}).get("Message", str(error)),
            "status": response.get("ResponseMetadata", {}).get("HTTPStatusCode"),
        }
    }


def run(call):
    """Calls `call(operation, arguments)` for each of argv[1] and prints what it returns or how it fails."""
    for operation, arguments in json.loads(sys.argv[1]):
        try:
            result = call(operation, arguments)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            result = failure(error)
        print(json.dumps(result, default=plain), flush=True)


def main():
    client = boto3.client("secretsmanager")

    def call(operation, arguments):
        if "SecretBinary" in arguments:
            arguments["SecretBinary"] = base64.b64decode(arguments["SecretBinary"])
        response = getattr(client, operation)(**arguments)
        metadata = response.pop("ResponseMetadata")
        return response | {name: metadata.get(name) for name in ("HTTPStatusCode", "RequestId")}

    run(call)


if __name__ == "__main__":
    main()
