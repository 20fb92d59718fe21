"""`python -m docs.drawing` draws the method: docs/method.svg, for the README and method.md."""

from html import escape
from pathlib import Path


WIDTH, HEIGHT = 760, 790
INK, PALE_INK, GREY = "#1f2933", "#52606d", "#cbd2d9"
# Fill and outline of what belongs together.
BLUE, GREEN, PURPLE = ("#dceafb", "#2f6fb7"), ("#d8f1e1", "#2a8a57"), ("#e8e0fa", "#6b46b5")
ORANGE, RED, PLAIN = ("#ffe9d1", "#c36f14"), ("#fde0e2", "#bf3648"), ("#f1f4f7", "#9aa5b1")

# The two columns: down on the left, up on the right.
LEFT, LEFT_WIDTH, RIGHT, RIGHT_WIDTH = 24, 332, 436, 284
TOKENS = ["<s>", "A", "cat", "ate", "fish", "</s>"]
WEIGHTS = [0.15, 0.85, 0.6, 0.75]  # of those between the special ones
PITCH, CELL = 55, 16

TITLE = "The method of SARCSE"
DESCRIPTION = (
    "A pretrained encoder turns the tokens of a sentence into contextual vectors (its last layer) and word vectors "
    "(its word embeddings), in one pass. Two views are made of them, each without some dimensions. The embedding of "
    "a view is the mean of its contextual vectors plus a weighted mean of its word vectors. The weights come from a "
    "TextCNN on the word vectors: convolutions of width 3, 4 and 5, GELU, an integrating convolution, and a softmax "
    "over the positions in each dimension. InfoNCE compares the two embeddings of each sentence with those of other "
    "sentences. A decoder, which is a transposed convolution and a TextCNN, reconstructs the sum of each content "
    "token's two vectors from the first view's embedding, which is added at each position. Squared errors are "
    "weighted; the weights fall with the token's frequency. The loss is InfoNCE plus the weighted error."
)


def text(
    x: float,
    y: float,
    words: str,
    *,
    bold: bool = False,
    pale: bool = False,
    size: int | None = None,
    anchor: str = "middle",
) -> str:
    style = ('font-weight="bold" ' if bold else "") + (f'font-size="{size}" ' if size else "")
    return (
        f'<text x="{x:g}" y="{y:g}" {style}fill="{PALE_INK if pale else INK}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def shape(x: float, y: float, width: float, height: float, colors: tuple[str, str], radius: float = 10) -> str:
    fill, stroke = colors
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="2"/>'
    )


def box(x: float, y: float, width: float, height: float, colors: tuple[str, str], *lines: str) -> list[str]:
    """A box with lines of text in its middle; the first one is its title."""
    step = 27
    first = y + height / 2 - step * (len(lines) - 1) / 2 + 7
    words = [text(x + width / 2, first + step * i, line, bold=i == 0) for i, line in enumerate(lines)]
    return [shape(x, y, width, height, colors), *words]


def arrow(*points: tuple[float, float]) -> str:
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{PALE_INK}" stroke-width="2.5" marker-end="url(#head)"/>'


def vector(x: float, y: float, colors: tuple[str, str], cells: int = 4, across: bool = False) -> list[str]:
    """Cells in a column around x, or in a row from x on."""
    steps = [i * (CELL + 2) for i in range(cells)]
    places = [(x + step, y) for step in steps] if across else [(x - CELL / 2, y + step) for step in steps]
    return [shape(*place, CELL, CELL, colors, radius=3) for place in places]


def widths(x: float, y: float, colors: tuple[str, str]) -> list[str]:
    """The three convolutions of a TextCNN, as wide as they are, and their activation."""
    parts = []
    for size in (3, 4, 5):
        parts += [shape(x, y, 11 * size, 28, ("#ffffff", colors[1]), 6), text(x + 5.5 * size, y + 21, str(size))]
        x += 11 * size + 7
    return [*parts, text(x + 3, y + 21, "GELU", anchor="start")]


def drawing() -> str:
    left, right = LEFT + LEFT_WIDTH / 2, RIGHT + RIGHT_WIDTH / 2  # the middles
    columns = [left + PITCH * (i - 2.5) for i in range(len(TOKENS))]
    content = [right + PITCH * (i - 1.5) for i in range(len(WEIGHTS))]
    parts = []

    # From the sentence to its token vectors.
    for x, token in zip(columns, TOKENS):
        colors = PLAIN if token.startswith("<") else BLUE
        parts += [shape(x - 25.5, 24, 51, 36, ("#ffffff", colors[1]), 8), text(x, 48, token, size=18)]
        parts += vector(x, 156, colors)
    parts += [arrow((left, 60), (left, 82)), *box(LEFT, 84, LEFT_WIDTH, 46, BLUE, "Encoder, one pass")]
    parts += [arrow((left, 130), (left, 152)), text(left - 14, 254, "contextual", anchor="end", pale=True)]
    parts += [text(left + 14, 254, "and word vectors", anchor="start", pale=True)]

    # Two views, and their embeddings.
    parts += [arrow((left, 230), (left, 270))]
    parts += box(LEFT, 272, LEFT_WIDTH, 74, BLUE, "Two views", "each without some dimensions")
    parts += [arrow((61, 346), (61, 374)), *box(LEFT, 376, 74, 160, GREEN, "Mean", "of last", "layer")]
    parts += [arrow((235, 346), (235, 374)), shape(110, 376, 246, 160, GREEN)]
    parts += [text(235, 403, "TextCNN on words", bold=True), *widths(136, 415, GREEN)]
    lines = ("integrating convolution", "softmax over positions", "weighted mean")
    parts += [text(235, 468 + 27 * i, line) for i, line in enumerate(lines)]
    parts += [arrow((235, 536), (235, 556)), arrow((61, 536), (61, 574), (217, 574))]
    parts += [f'<circle cx="235" cy="574" r="16" fill="#ffffff" stroke="{GREEN[1]}" stroke-width="2"/>']
    parts += [text(235, 581, "+", bold=True), arrow((235, 590), (235, 610))]
    parts += [shape(LEFT, 612, LEFT_WIDTH, 66, PURPLE)]
    parts += [
        text(40, 640, "Sentence", bold=True, anchor="start"),
        text(40, 665, "embeddings", bold=True, anchor="start"),
    ]
    for x, name in ((188, "h₁"), (272, "h₂")):
        parts += [*vector(x, 622, ("#ffffff", PURPLE[1]), across=True), text(x + 35, 666, name)]
    parts += [arrow((left, 678), (left, 698))]
    parts += box(LEFT, 700, LEFT_WIDTH, 66, RED, "InfoNCE", "views together, others apart")

    # The reconstruction, upwards.
    parts += [
        arrow((356, 645), (right, 645), (right, 538)),
        text(368, 635, "h₁, first view", anchor="start", pale=True),
    ]
    parts += [shape(RIGHT, 376, RIGHT_WIDTH, 160, ORANGE), text(right, 403, "Decoder", bold=True)]
    parts += [text(right, 523, "transposed convolution"), *widths(RIGHT + 44, 470, ORANGE)]
    parts += [text(right, 431, "+ h₁ at each position"), text(right, 458, "1×1 convolution")]
    parts += [arrow((right, 376), (right, 344)), text(right - 12, 366, "reconstruction", anchor="end", pale=True)]
    for x, weight, token in zip(content, WEIGHTS, TOKENS[1:]):
        parts += [
            *vector(x, 270, ORANGE),
            shape(x - 15, 108 - 52 * weight, 30, 52 * weight, RED, 3),
            text(x, 130, token, size=18),
        ]
    parts += [arrow((right, 268), (right, 226)), arrow((356, 191), (434, 191))]
    parts += [text(396, 180, "target", pale=True), text(right, 42, "weights fall with frequency", pale=True)]
    parts += [
        arrow((right, 136), (right, 156)),
        *box(RIGHT, 158, RIGHT_WIDTH, 66, RED, "Weighted error", "squared, content tokens"),
    ]
    parts += [arrow((356, 733), (434, 733)), arrow((RIGHT + RIGHT_WIDTH, 191), (740, 191), (740, 733), (722, 733))]
    parts += box(RIGHT, 700, RIGHT_WIDTH, 66, RED, "Loss", "InfoNCE + weighted error")

    body = "\n".join(parts)
    head = f'<path d="M0 0 L10 5 L0 10 z" fill="{PALE_INK}"/>'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"
 font-family="Helvetica, Arial, sans-serif" font-size="20" role="img" aria-labelledby="title description">
<title id="title">{TITLE}</title>
<desc id="description">{DESCRIPTION}</desc>
<defs>
<marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="12" markerHeight="12"
 markerUnits="userSpaceOnUse" orient="auto">{head}</marker>
</defs>
<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="16" fill="#ffffff" stroke="{GREY}"/>
{body}
</svg>
"""


def main() -> None:
    Path(__file__).with_name("method.svg").write_text(drawing(), encoding="utf-8")


if __name__ == "__main__":
    main()
