"""A pooler that somebody adds, as CONTRIBUTING.md says: from its two lines to a verified release."""

import json
import shutil

import pytest
import torch

from .conftest import PROJECT, SENTENCES, flags, run_python


MAX = '''

class Max(Pooler):
    """The maximum of each dimension over the attended tokens."""

    description = "the maximum over the token vectors"
    pooling_mode = {mode!r}

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, content: torch.Tensor | None = None
    ) -> torch.Tensor:
        return hidden_states.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1)  # (B, L, d) -> (B, d)


POOLERS: dict[str, type[Pooler]] = {{
    "max": Max,
'''
READ = """
import json, sys
from transformers import AutoModel, AutoTokenizer
sentences = json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
output = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)(
    **tokenizer(sentences, padding=True, return_tensors="pt")
)
print(json.dumps([output.pooler_output.tolist(), output.last_hidden_state.tolist()]))
"""


@pytest.mark.parametrize("mode", [None, "max"])
def test_a_class_and_a_line_are_enough_for_a_new_pooler(tmp_path, mode):
    """
    It is trained, scored and released with the code, whether sentence-transformers has a name for it or not: a plain
    release, its check and the page of a Space know the mean and the first token only.
    """
    project = tmp_path / "project"
    shutil.copytree(
        PROJECT, project, ignore=lambda folder, names: [n for n in names if n[0] == "." or n in ("output", "study")]
    )
    code = project / "modeling_sarcse.py"
    text = code.read_text(encoding="utf-8")
    line = "\n\nPOOLERS: dict[str, type[Pooler]] = {\n"
    assert text.count(line) == 1
    code.write_text(text.replace(line, MAX.format(mode=mode)), encoding="utf-8")
    options = {"pooler": "max", "channels": None, "reconstruction_weight": 0, "max_steps": 2, "save_steps": 1}
    process = run_python(project / "train.py", *flags(tmp_path / "model", **options, eval_steps=1), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    command = ["-m", "model_card", tmp_path / "model", "--release_dir", tmp_path / "release"]
    process = run_python(*command, cwd=project)
    assert process.returncode == 0, process.stderr
    assert "Built and verified" in process.stdout and "no ONNX file" not in process.stderr
    assert (tmp_path / "release" / "modeling_sarcse.py").read_bytes() == code.read_bytes()
    told = run_python(*command, "--plain", cwd=project)
    assert told.returncode == 2 and "(pooler max; cls and mean need none)" in told.stderr
    process = run_python("-c", READ, tmp_path / "release", json.dumps(SENTENCES[:1]), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    embedding, vectors = map(torch.tensor, json.loads(process.stdout.splitlines()[-1]))
    torch.testing.assert_close(embedding, vectors.max(dim=1).values)
