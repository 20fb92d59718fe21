"""
Long sentences in Markdown, and sentences that are full of numbers: `python -m tests.prose FILE ...` prints them.

What is no prose is left out: front matter, code, tables, headings, comments, tags of HTML and of templates, addresses
of links, and the blocks of mkdocstrings.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path


MOST_WORDS, MOST_NUMBERS = 30, 2
FEW_WORDS = 6  # in which more numbers are a list of them

# Each stands between paragraphs.
BLOCKS = (
    r"(?s)\A---\n.*?\n---\n",  # front matter
    r"(?sm)^( *)(```+|~~~+).*?^\1\2[ \t]*$",
    r"(?s)<!--.*?-->",
    r"(?m)^:::.*\n(?:(?: {4}.*)?\n)*",
    r"(?m)^ *\|.*$",
    r"(?m)^#.*$",
    r"(?m)^ *(?:[-*+]|\d+\.) ",  # of an item
)
IN_TEXT = (
    (r"(?s)\{%.*?%\}|\{#.*?#\}", " "),
    (r"(?s)\{\{.*?\}\}", "name"),
    (r"(?s)(`+)[^`].*?\1", "Code"),  # which may begin a sentence
    (r"!?\[([^\]]*)\]\([^)]*\)", r"\1"),
    (r"<https?:[^>]*>", "address"),
    (r"</?[a-z][^>]*>", " "),
    (r"\*+", ""),
    (r"(?m)^ *>", ""),
)
SENTENCE_END = r"""(?<=[.!?:;])\s+(?=["'(A-Z\[])|(?<=:)\s+|(?<=[.!?]["')])\s+(?=["'(A-Z\[])"""
WORD = r"[A-Za-z0-9][\w'’./-]*"
NUMBER = r"(?<![\w.-])[+-]?\d[\d.,]*(?![\w-])"
# Which belong to another number or to a name.
NOT_COUNTED = r"\[[+-]?[\d.]+, [+-]?[\d.]+\]|(?<=arXiv )\d+\.\d+"


def sentences(markdown: str) -> Iterator[str]:
    for block in BLOCKS:
        markdown = re.sub(block, "\n\n", markdown)
    for pattern, replacement in IN_TEXT:
        markdown = re.sub(pattern, replacement, markdown)
    for paragraph in re.split(r"\n\s*\n", markdown):
        for sentence in re.split(SENTENCE_END, " ".join(paragraph.split())):
            if sentence:
                yield sentence


def faults(markdown: str) -> list[str]:
    """What is wrong with which sentence."""
    found = []
    for sentence in sentences(markdown):
        words = len(re.findall(WORD, sentence))
        numbers = len(re.findall(NUMBER, re.sub(NOT_COUNTED, "", sentence)))
        if words > MOST_WORDS:
            found.append(f"{words} words: {sentence}")
        elif numbers > MOST_NUMBERS and words > FEW_WORDS:
            found.append(f"{numbers} numbers: {sentence}")
    return found


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for fault in faults(Path(name).read_text(encoding="utf-8")):
            print(f"{name}: {fault}")
