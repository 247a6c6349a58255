"""What Grafana's own schema does not know of a dashboard, or has otherwise: reads it from standard input, prints JSON.

The schema as classes, which Grafana generates: what goes in and does not come out is not known.
"""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def differences(ours, theirs, path=""):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from differences(value, theirs.get(key), f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (value, other) in enumerate(zip(ours, theirs)):
            yield from differences(value, other, f"{path}/{index}")
    elif ours != theirs:
        yield path


register_default_plugins()
dashboard = json.load(sys.stdin)
print(json.dumps(list(differences(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))))))
