"""Files and other programs' output are UTF-8, whatever the machine's locale."""

import ast
import re
import textwrap

from .conftest import DEMO, PROJECT, flags, run_python


# Python would read and write ASCII.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def sources() -> dict[str, str]:
    """The project's code without its tests, and the Python blocks of its pages."""
    found = {}
    for path in PROJECT.rglob("*.py"):
        if not re.match(r"\.|tests|output", str(path.relative_to(PROJECT))):
            found[str(path)] = path.read_text(encoding="utf-8")
    for page in [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]:
        blocks = re.findall(r"^ *```python\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found[str(page)] = "\n".join(textwrap.dedent(block) for block in blocks)
    return found


def in_the_locales_encoding(code: str) -> list[str]:
    """Calls that read or write text without naming its encoding."""
    found = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func).split(".")[-1]
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        modes = [ast.unparse(value) for value in call.args] + [arguments.get("mode", "")]
        binary = any(re.fullmatch(r"'[rwxa+]*b[+]?'", mode) for mode in modes)
        opens = name == "open" and not binary and "os." not in ast.unparse(call.func)
        if (opens or name in ("read_text", "write_text") or "text" in arguments) and "encoding" not in arguments:
            found.append(ast.unparse(call))
    return found


def test_no_call_leaves_the_encoding_to_the_locale():
    assert in_the_locales_encoding("open(p); p.read_text(); subprocess.run(c, capture_output=True, text=True)") != []
    assert in_the_locales_encoding("open(p, 'rb'); p.write_text(t, encoding='utf-8')") == []
    assert {name: calls for name, code in sources().items() if (calls := in_the_locales_encoding(code))} == {}


def test_a_model_is_trained_released_and_checked_where_the_locale_is_ascii(tmp_path):
    """On text with accents; so do the lines of its card."""
    text = (DEMO / "sentences.txt").read_text(encoding="utf-8").splitlines()[:31]
    (tmp_path / "french.txt").write_text("\n".join([*text, "Le café était fermé."]), encoding="utf-8")
    options = {"train_file": tmp_path / "french.txt", "pooler": "mean", "channels": None, "max_steps": 2}
    process = run_python(PROJECT / "train.py", *flags(tmp_path / "model", **options), cwd=tmp_path, **ASCII)
    assert process.returncode == 0, process.stderr
    command = ["-m", "model_card", tmp_path / "model", "--release_dir", tmp_path / "release", "--license", "mit"]
    process = run_python(*command, cwd=PROJECT, **ASCII)
    assert process.returncode == 0, process.stderr
    card = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    assert "`french.txt`" in card
    first, _, golden = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[:3]
    code = f"{first}\n{golden}".replace("you/release", str(tmp_path / "release"))
    code = re.sub(r"hf_hub_download\(.*\)", repr(str(tmp_path / "release" / "golden_embeddings.json")), code)
    process = run_python("-c", code, cwd=tmp_path, **ASCII)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout.splitlines()[-1]) <= 1e-5
