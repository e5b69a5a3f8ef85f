#!/usr/bin/env python3
"""Reads a dashboard with Grafana's own types (grafana-foundation-sdk): what they do not have, Grafana passes over."""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def unknown(given, read, at=""):
    """Where `given` has something that is not in `read`."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from unknown(value, read[key], f"{at}.{key}") if key in read else [f"{at}.{key}"]
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for place, (value, other) in enumerate(zip(given, read)):
            yield from unknown(value, other, f"{at}[{place}]")
    elif given != read:
        yield at


register_default_plugins()
with open(sys.argv[1], encoding="utf-8") as file:
    dashboard = json.load(file)
found = list(unknown(dashboard, json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))))
sys.exit("\n".join(f"{sys.argv[1]}: Grafana does not know {at}" for at in found) or None)
