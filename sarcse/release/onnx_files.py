"""
ONNX files of a release: the model for programs that run no Python, in float32 and optionally in int8.

Shapes: B sentences, L positions with padding, d dimensions.
"""

import copy
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeling_sarcse import SarcseModel, rows_by_length
from sarcse.evaluation.comparison import correlations, reference_task
from sarcse.evaluation.embedding import embed_pairs
from sarcse.output import write_json
from sarcse.release.facts import Onnx
from sarcse.release.folder import GOLDEN_SENTENCES, GOLDEN_TOLERANCE, write_tokenizer
from sarcse.release.plain import max_length, write_sentence_transformers_files


logger = transformers_logging.get_logger(__name__)

FLOAT_FILE = "onnx/model.onnx"

# One file under three names. sentence-transformers has a name for each of two processor types, with the same content;
# Transformers.js loads the third in a browser.
INT8_FILES = (
    "onnx/model_qint8_avx512_vnni.onnx",
    "onnx/model_qint8_arm64.onnx",
    "onnx/model_quantized.onnx",
)

# As sentence-transformers makes them through optimum, with two exceptions that stay in float32. Convolutions were no
# faster in int8 and lost three times as much. Products of two activations, as in attention, lost ten times as much.
INT8_OPTIONS: dict[str, Any] = {
    "op_types_to_quantize": ["MatMul", "Gather"],
    "per_channel": True,
    "weight_type": QuantType.QInt8,
    "extra_options": {"MatMulConstBOnly": True},
}

# The limit of a protobuf. Larger models have their weights in a second file, which optimum, Transformers.js and
# text-embeddings-inference look for under this name.
LARGEST_FILE = 2_000_000_000  # bytes
DATA_SUFFIX = "_data"

INPUTS = ("input_ids", "attention_mask")


class Readable(nn.Module):
    """
    What a file computes. For a plain model: the encoder's vectors `(B, L, d)`, which the reader pools, as in common
    exports. For a model with code: the embedding `(B, d)`, and the same repeated L times, `(B, L, d)`, in place of
    token vectors. Pooling those by the first token or the mean gives the embedding.
    """

    def __init__(self, model: SarcseModel, plain: bool) -> None:
        super().__init__()
        self.model, self.plain = model, plain
        self.outputs = ["last_hidden_state"] if plain else ["sentence_embedding", "last_hidden_state"]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(input_ids, attention_mask)
        if self.plain:
            return (output.last_hidden_state,)
        embeddings = output.pooler_output  # (B, d)
        return embeddings, embeddings.unsqueeze(1).expand(-1, input_ids.shape[1], -1)  # (B, d), (B, L, d)


def write(
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    plain: bool,
    tasks: dict[str, datasets.Dataset] | None,
) -> Onnx | None:
    """
    Write the files and verify them against the model in float64; int8 too if `tasks` has graded pairs to score it on.
    If torch cannot export the encoder, the release has no ONNX files: warns and returns None.

    Raises:
        ValueError: int8 was requested, but the float32 weights do not fit into one file.
    """
    if tasks is not None and in_two_files(model):
        raise ValueError(f"--onnx_int8: the weights exceed {LARGEST_FILE:,} bytes. Leave --onnx_int8 out.")
    print("Exporting to ONNX", file=sys.stderr)
    try:
        write_float(model, tokenizer, folder, plain)
        check_float(model, tokenizer, folder)
    except ValueError as error:
        shutil.rmtree((folder / FLOAT_FILE).parent, ignore_errors=True)
        logger.warning(f"The release has no ONNX file: this encoder's export does not work. {error}")
        return None
    if in_two_files(model):
        path = folder / "config.json"
        told = {"transformers.js_config": {"use_external_data_format": {Path(FLOAT_FILE).name: 1}}}
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **told})
    if not plain:
        write_folder_without_code(model, tokenizer, (folder / FLOAT_FILE).parent)
    if tasks is None:
        return Onnx({FLOAT_FILE: size(folder, FLOAT_FILE)})
    write_int8(folder)
    task = reference_task(tasks) or next(iter(tasks))
    scores = score(folder, model.sentence_encoder, tokenizer, tasks[task])
    return Onnx({name: size(folder, name) for name in scores}, task, len(tasks[task]), scores)


def score(
    folder: Path, pooler: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: datasets.Dataset
) -> dict[str, float | None]:
    """Spearman x 100 of every file on graded pairs; the int8 files are identical and scored once."""
    gold = np.array(pairs["score"][:], dtype=np.float64)
    scores = {}
    for name in (FLOAT_FILE, INT8_FILES[0]):
        found = partial(embed, open_session(folder / name), pooler, tokenizer)
        embedded = embed_pairs(found, pairs, alone=True)  # after a training only the first process makes a release
        scores[name] = correlations(embedded.similarities(), gold).spearman
    return {**scores, **dict.fromkeys(INT8_FILES, scores[INT8_FILES[0]])}


def write_folder_without_code(model: SarcseModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """
    Make the ONNX folder a model of its own, for programs that read a configuration. sentence-transformers and optimum
    cannot load the parent folder without its code.
    """
    config = copy.deepcopy(model.config.encoder_config)
    config.architectures = [type(model.encoder).__name__]
    config.save_pretrained(folder)
    write_tokenizer(tokenizer, folder)
    write_sentence_transformers_files(folder, model.config.hidden_size, "cls", max_length(tokenizer), normalize=False)


def size(folder: Path, name: str) -> int:
    """Bytes of a file, including the second file with its weights if there is one."""
    return sum(path.stat().st_size for path in (folder / name).parent.glob(f"{Path(name).name}*"))


@torch.no_grad()
def check_float(model: SarcseModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """
    Raises:
        ValueError: ONNX Runtime cannot run `FLOAT_FILE`, or its embeddings differ from the model's in float64.
    """
    batch = tokenizer(GOLDEN_SENTENCES, padding=True, truncation=True, return_tensors="pt")
    exact = copy.deepcopy(model).double()(**batch).pooler_output
    try:
        found = embed(open_session(folder / FLOAT_FILE), model.sentence_encoder, tokenizer, GOLDEN_SENTENCES)
    except Exception as error:  # onnxruntime's exceptions have no common class
        raise ValueError(reason(error)) from error
    if model.config.normalize:  # as the readers of a plain model do; others get it from the file
        found = nn.functional.normalize(found, dim=1)
    difference = ((found - exact).abs().max() / exact.abs().max()).item()
    if not difference <= GOLDEN_TOLERANCE:
        raise ValueError(f"Its embeddings differ by {difference:.1e} from the model's.")


def write_float(model: SarcseModel, tokenizer: PreTrainedTokenizerBase, folder: Path, plain: bool) -> None:
    """
    Write `FLOAT_FILE`, for any number of sentences and tokens.

    Raises:
        ValueError: torch cannot export this encoder.
    """
    shown = tokenizer(["Any sentence.", "It only shows the shapes."], padding=True, return_tensors="pt")
    readable = Readable(model, plain)
    with silence():
        try:
            program = torch.onnx.export(
                readable.eval(),
                kwargs={name: shown[name] for name in INPUTS},
                dynamic_shapes=dict.fromkeys(INPUTS, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}),
                output_names=readable.outputs,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter has a separate exception for each of its steps
            raise ValueError(reason(error)) from error
    graph = program.model  # type: ignore[union-attr]  # None only after a failure, which raises
    # The exporter records the source lines of each node, with paths of this machine.
    ClearMetadataAndDocStringPass()(graph)
    path = folder / FLOAT_FILE
    path.parent.mkdir(exist_ok=True)
    external = f"{path.name}{DATA_SUFFIX}" if in_two_files(model) else None
    onnx_ir.save(graph, path, external_data=external)


def in_two_files(model: SarcseModel) -> bool:
    return 4 * model.num_parameters() > LARGEST_FILE


def write_int8(folder: Path) -> None:
    """Write `INT8_FILES` from `FLOAT_FILE`: weights are quantised now, activations at run time."""
    first, *others = (folder / name for name in INT8_FILES)
    with silence():
        quantize_dynamic(folder / FLOAT_FILE, first, **INT8_OPTIONS)
    for other in others:
        other.write_bytes(first.read_bytes())


def reason(error: BaseException) -> str:
    """The root cause in one line: the exporter wraps it in the failure of a step, with a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


@contextmanager
def silence() -> Iterator[None]:
    """Hide the exporter's and the quantiser's messages, which are meant for their developers."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "torch.onnx._internal.exporter._registration")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


# --- Running them ----------------------------------------------------------------------------------------------------


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """With as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def embed(
    session: onnxruntime.InferenceSession,
    pooler: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: list[str],
    batch_size: int = 64,
) -> torch.Tensor:
    """Embeddings from ONNX Runtime, `(len(sentences), d)`; `pooler` pools token vectors."""
    token_ids = tokenizer(sentences, truncation=True)["input_ids"]
    pad = DataCollatorWithPadding(tokenizer, return_tensors="np")
    embeddings: list[torch.Tensor] = [torch.empty(0)] * len(token_ids)
    for rows in rows_by_length(token_ids, batch_size):
        batch = pad([{"input_ids": token_ids[row]} for row in rows])
        found = torch.from_numpy(session.run(None, {name: batch[name] for name in INPUTS})[0])
        if found.dim() == 3:
            found = pooler(found, torch.from_numpy(batch["attention_mask"]).bool())  # (B, L, d) -> (B, d)
        for row, embedding in zip(rows, found):
            embeddings[row] = embedding
    return torch.stack(embeddings)
