"""
An extension of griffe, which reads the code for the API page: docstrings as Markdown, and the arguments of a training.

The docstrings are in the form that transformers uses, which griffe has no parser for.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import griffe


SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?: {4}.*(?:\n|$)|\n)+)", re.MULTILINE)
ITEM = re.compile(r"^(\S.*?):(?=\s)", re.MULTILINE)
# A name, and what is in parentheses or in backquotes, which has none.
NAME = re.compile(r"\((?:[^()]|\([^()]*\))*\)|(\w+)")


def as_markdown(docstring: str) -> str:
    """Sections become lists, with the names in bold, and names that transformers would link become code."""

    def item(match: re.Match[str]) -> str:
        names = NAME.sub(lambda part: f"**`{part[1]}`**" if part[1] else part[0], match[1])
        return f"- {names}:"

    def section(match: re.Match[str]) -> str:
        title = {"Args": "Arguments"}.get(match[1], match[1])
        return f"**{title}**\n\n{ITEM.sub(item, textwrap.dedent(match[2]))}\n"

    return re.sub(r"\[(`[\w.]+`)\](?![(\[])", r"\1", SECTION.sub(section, docstring))


def fields_of(cls: griffe.Class) -> Iterator[tuple[str, str, str]]:
    """Name, default and help of the fields of a class of arguments, with those that it inherits in its module."""
    for attribute in cls.attributes.values():
        value = ast.parse(str(attribute.value), mode="eval").body
        if not isinstance(value, ast.Call) or ast.unparse(value.func) != "field":
            continue
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        metadata = given["metadata"]
        assert isinstance(metadata, ast.Dict)
        named = {ast.literal_eval(key): text for key, text in zip(metadata.keys, metadata.values) if key is not None}
        default = ast.unparse(given["default"]) if "default" in given else "[]"
        yield attribute.name, default, evaluated(named["help"], cls.module)


def evaluated(text: ast.expr, module: griffe.Module) -> str:
    """The value of a string in which there may be constants of its module."""
    names = {node.id for node in ast.walk(text) if isinstance(node, ast.Name)}
    constants = {name: ast.literal_eval(str(module.attributes[name].value)) for name in names}
    return eval(compile(ast.Expression(text), module.path, "eval"), constants)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if cls.name == "SarcseTrainingArguments" and cls.docstring is not None:
            items = [f"- **`{name}`** (`{default}`): {text}" for name, default, text in fields_of(cls)]
            cls.docstring.value += "\n\n**Fields and defaults**\n\n" + "\n".join(items)
