"""The chart as Helm renders it, and manifests as Kubernetes' own schemas have them. Prints JSON.

chart.py render CHART VALUES [RELEASE]    {"manifests": [..], "notes": ".."}; on bad values, Helm's error, and exits 1
chart.py lint CHART VALUES                the findings of `helm lint --strict`
chart.py validate VERSION                 reads a list of manifests, as YAML or JSON;
                                          {"errors": [..], "unknown": [kinds without a schema]}
"""

import json
import pathlib
import sys

import yaml


def render(chart, values, release="smcached"):
    import helm_python

    # The order of the files is the chart's; what a template leaves empty is dropped.
    try:
        with helm_python.Chart.load(chart) as loaded:
            values = yaml.safe_load(pathlib.Path(values).read_text())
            rendered = loaded.render(values, name=release, namespace="smcached")
    except helm_python.HelmError as error:
        sys.exit(str(error))
    notes = "".join(text for path, text in rendered.items() if path.endswith("NOTES.txt"))
    manifests = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
    documents = [document for text in manifests for document in yaml.safe_load_all(text) if document]
    return {"manifests": documents, "notes": notes}


def lint(chart, values):
    import helm_python

    report = helm_python.lint(chart, yaml.safe_load(pathlib.Path(values).read_text()), strict=True)
    return [message for message in report["messages"] if message["severity"] > 1] + report["errors"]


def validate(version):
    import kubernetes_validate

    errors, unknown = [], []
    for manifest in yaml.safe_load(sys.stdin):
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError as error:
            unknown.append(error.kind)
        except kubernetes_validate.ValidationError as error:
            errors.append(f"{manifest['kind']}: {'.'.join(map(str, error.path))}: {error.message}")
    return {"errors": errors, "unknown": unknown}


command, *arguments = sys.argv[1:]
print(json.dumps({"render": render, "lint": lint, "validate": validate}[command](*arguments)))
