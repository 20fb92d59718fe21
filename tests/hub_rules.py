"""
What the Hub demands of the metadata of a model card, as far as it is written down: its server's code is not public.

Sources: the documentation of the Hub (modelcard.md, model-cards.md, repositories-licenses.md), huggingface_hub's
repocard.py and its tests, and the server's messages as people quote them in issues.
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
    """A key that stands twice is an error on the server, where PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"duplicated mapping key {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def errors(card: str) -> list[str]:
    """What the Hub would answer; empty for what it takes."""
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
    for key in ("base_model", "datasets"):
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
