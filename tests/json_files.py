"""JSON files in the program's encoding."""

import json


def read_json(file):
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file, content):
    file.write_text(json.dumps(content), encoding="utf-8")
