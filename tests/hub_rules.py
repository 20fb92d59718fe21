"""
The Hub's rules for the metadata of a model's or a Space's card, as far as they are documented: the server's code is
not public.

Sources: the documentation of the Hub (modelcard.md, model-cards.md, repositories-licenses.md,
spaces-config-reference.md), huggingface_hub's repocard.py and its tests, and the server's messages quoted
in issues.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.utils import validate_repo_id


# repocard.py: "exact same regex as in the Hub server".
FRONT_MATTER = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\r|\n|$))")

LICENSES = Path(__file__).with_name("hub_licenses.txt").read_text(encoding="utf-8").split()


class OneOfEachKey(yaml.SafeLoader):
    """Rejects duplicate keys, like the server; PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"duplicated mapping key {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


# Of a Space: its fields, with what they may hold.
SPACE_COLORS = "red|yellow|green|blue|indigo|purple|pink|gray"
SPACE_FIELDS = {
    "title": ".+",
    "emoji": r"[^\w\s]+",
    "colorFrom": SPACE_COLORS,
    "colorTo": SPACE_COLORS,
    "sdk": "gradio|docker|static",
    "sdk_version": r"\d+\.\d+\.\d+",
    "python_version": r"3\.\d+(\.\d+)?",
    "app_file": r"[\w./-]+",
    "short_description": ".{1,60}",
    "license": ".+",
    "models": None,
    "preload_from_hub": None,
}
PRELOADED = r"[\w.-]+/[\w.-]+( [^ ]+( [0-9a-f]{40})?)?"


def errors(card: str, kind: str = "model") -> list[str]:
    """The errors that the Hub would report; empty if it accepts the card."""
    front_matter = FRONT_MATTER.match(card)
    if front_matter is None:
        return ["no metadata"]
    try:
        data = yaml.load(front_matter[2], OneOfEachKey)
    except yaml.YAMLError as error:
        return [str(error)]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"]
    found = [f'"{key}" must not be empty' for key, value in data.items() if value is None or value == ""]
    found += [f'"license" must be one of them, not {name!r}' for name in as_list(data.get("license")) - {*LICENSES}]
    for language in as_list(data.get("language")):
        if language not in ("code", "multilingual") and not re.fullmatch("[a-z]{2,3}", language):
            found.append(f'"language" must be an ISO 639 code, not {language!r}')
    if kind == "space":
        found += space_errors(data)
    for key in ("base_model", "datasets", "models"):
        found += [
            f'"{key}" must be an id of the Hub, not {name!r}' for name in as_list(data.get(key)) if not is_id(name)
        ]
    found += [f'"{key}" must be a list' for key in ("tags", "metrics", "datasets") if not is_list_of_text(data, key)]
    for item in data.get("widget", []):
        if set(item) != {"source_sentence", "sentences"} or not item["sentences"]:
            found.append('"widget" of sentence similarity needs source_sentence and sentences')
    for index, model in enumerate(data.get("model-index", [])):
        where = f'"model-index[{index}]'
        if not model.get("name") or not isinstance(model.get("results"), list):
            found.append(f'{where}" needs a name and results')
            continue
        for result in model["results"]:
            task, dataset, metrics = (result.get(name) or {} for name in ("task", "dataset", "metrics"))
            if not (task.get("type") and dataset.get("type") and dataset.get("name") and isinstance(metrics, list)):
                found.append(f'{where}.results" needs task.type, dataset.type, dataset.name and metrics')
            found += [f'{where}.metrics" needs type and value' for m in metrics if not {"type", "value"} <= set(m)]
    return found


def space_errors(data: dict[str, Any]) -> list[str]:
    found = [f'"{key}" is missing' for key in ("title", "sdk", "sdk_version", "app_file") if key not in data]
    for key, value in data.items():
        if key not in SPACE_FIELDS:
            found.append(f'"{key}" is no field of a Space')
        elif SPACE_FIELDS[key] and not (isinstance(value, str) and re.fullmatch(SPACE_FIELDS[key], value)):
            found.append(f'"{key}" must not be {value!r}')
    preloaded = data.get("preload_from_hub", [])
    return found + [f'"preload_from_hub" has {item!r}' for item in preloaded if not re.fullmatch(PRELOADED, item)]


def as_list(value: Any) -> set[str]:
    return {value} if isinstance(value, str) else set(value or [])


def is_list_of_text(data: dict[str, Any], key: str) -> bool:
    values = data.get(key, [])
    return isinstance(values, list) and all(isinstance(value, str) and value for value in values)


def is_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True
