"""
Read rows from files of five kinds, plain or compressed, local or on the Hub. Only the requested columns are read, text
stays text, and errors name the file and the line.

The readers are our own, about a page in total. Those of pandas and `datasets` guess a column's type from its first
rows, and shift the cells of a row with one too many. They also treat `[` in a file's name as a pattern.
"""

import codecs
import csv
import glob
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
from datasets.data_files import resolve_pattern
from fsspec.implementations.local import LocalFileSystem
from pyarrow import parquet
from transformers.utils import logging


logger = logging.get_logger(__name__)

# These raise an error at a stream that was cut short. (zstandard's reader, which fsspec would use, returns its end.)
DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": lambda file: io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd")),
}

# As `csv` and pandas write a cell with quotation marks in it: quoted, with each of them doubled.
QUOTED_CELL = re.compile(r'(?:^|\t)"[^\t]*""[^\t]*"(?:\t|$)', re.MULTILINE)

# csv's own limit of 131,072 characters is shorter than the longest lines of real corpora.
csv.field_size_limit(2**31 - 1)


# More rows, or bytes, take more than ten seconds to filter, tokenise or read.
MANY_ROWS, MANY_BYTES = 50_000, 10**7


@contextmanager
def progress_bar(shown: bool) -> Iterator[None]:
    """Let `datasets` show its progress bars, unless they are disabled, only where somebody has to wait."""
    enabled = not datasets.are_progress_bars_disabled()
    if not shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()


class UnreadableDataError(ValueError):
    """Data that cannot be read. A stream may raise this long after it was opened."""


class MissingColumnError(UnreadableDataError):
    """A requested column is missing."""

    @classmethod
    def of(cls, name: str, missing: Iterable[str], found: Iterable[str]) -> "MissingColumnError":
        """(A constructor with these arguments would lose the type in a DataLoader's worker.)"""
        return cls(f"{name}: no column {', '.join(missing)}; it has {', '.join(found)}.")


# --- Which files -----------------------------------------------------------------------------------------------------


def matching_files(name: str) -> list[str]:
    """
    The file of this name or, if there is none, the files that match the name as a pattern, in order. A pattern means
    what it does in `datasets`: `**` is any number of folders, and what is hidden or behind a link must be named.

    Raises:
        ValueError: if there is no such file, the ending of its name is unknown, or the Hub cannot be reached.
    """
    file_kind(name)
    try:
        filesystem, path = located(name)
        if filesystem.isfile(path):
            return [name]
        return sorted(resolve_pattern(with_literal_folder(name), ""))
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file.") from error
    except Exception as error:  # invalid file names, and the dozen exceptions of the Hub's client
        raise explained(name, error) from error


def with_literal_folder(pattern: str) -> str:
    """The pattern, with `[` and the like escaped in the folder that it begins with: `a[1]/*.txt` as `a[[]1]/*.txt`."""
    if "://" in pattern:
        return pattern
    folder = next(parent for parent in Path(pattern).parents if parent.is_dir())
    return str(Path(glob.escape(str(folder)), Path(pattern).relative_to(folder)))


def file_version(file: str) -> str:
    """A string that changes when the file does: its size and times, or its hash on the Hub."""
    filesystem, path = located(file)
    return str(filesystem.info(path))


def file_kind(name: str) -> str:
    """
    A file's kind, a key of `READERS`, from the ending of its name.

    Raises:
        ValueError: if the ending is unknown.
    """
    path = Path(name)
    suffix = path.with_suffix("").suffix if path.suffix in DECOMPRESSORS else path.suffix
    if suffix not in READERS:
        raise ValueError(
            f"{name}: the name of a data file must end in {', '.join(READERS)}, optionally followed by "
            f"{', '.join(DECOMPRESSORS)}."
        )
    return suffix


# --- Rows ------------------------------------------------------------------------------------------------------------

# A row, with its place for messages, "file, line 3".
Row = tuple[str, dict[str, Any]]


def read_rows(files: Iterable[str], columns: tuple[str, ...], optional: tuple[str, ...] | None = ()) -> Iterator[Row]:
    """
    Yield the place and the cells of every row of the files, in order. Cells are strings, or any type in JSON and
    Parquet. None stands for null, and for a key that a line of JSON lacks.

    Args:
        files (`list[str]`): From `matching_files`.
        columns (`tuple[str, ...]`): The columns to read.
        optional (`tuple[str, ...]`, *optional*): More columns to read, if the file has them; None for all.

    Raises:
        UnreadableDataError: if a file is empty, is not of the kind its name says, is not UTF-8, or lacks a column.
            Also if a row has more or fewer cells than the header. The message names the file and, if possible, the
            line.
    """
    for file in files:
        try:
            yield from READERS[file_kind(file)](file, columns, optional)
        except UnreadableDataError:
            raise
        except UnicodeDecodeError as error:
            raise not_utf8(undecodable_line(file), error) from error
        except Exception as error:  # from fsspec, the decompressors, Arrow or the Hub's client
            raise explained(file, error) from error


def text_of(place: str, column: str, value: Any) -> str | None:
    """
    Check a cell that must be text; None stays None.

    Raises:
        UnreadableDataError: if the cell is something else, or not valid Unicode.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise UnreadableDataError(f"{place}: {column!r} is {value!r}, not text.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UnreadableDataError(f"{place}: {column!r} is not valid Unicode ({error.reason}).") from error
    return value


def located(file: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """A file's filesystem and its name there. (fsspec would misread `::` in the name of a local file.)"""
    return (LocalFileSystem(), file) if Path(file).is_file() else fsspec.core.url_to_fs(file)


@contextmanager
def opened(file: str) -> Iterator[Any]:
    """A file, decompressed. Not by `fsspec.open`, which would expand patterns."""
    filesystem, path = located(file)
    with filesystem.open(path, "rb") as stream:
        yield DECOMPRESSORS.get(Path(file).suffix, lambda stream: stream)(stream)


@contextmanager
def opened_text(file: str, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """A file, decompressed and decoded. Without `newline`, all usual line endings count."""
    with opened(file) as stream:
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def text_rows(file: str, columns: tuple[str, ...], optional: tuple[str, ...] | None) -> Iterator[Row]:
    """One sentence per line, as the column `text`."""
    check_columns(file, columns, ["text"])
    number = 0
    with opened_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            yield f"{file}, line {number}", {"text": line.removesuffix("\n")}
    if number == 0:
        raise UnreadableDataError(f"{file}: the file is empty.")


def json_rows(file: str, columns: tuple[str, ...], optional: tuple[str, ...] | None) -> Iterator[Row]:
    """One JSON object per line. The first must have all columns; a key missing from a later one is null."""
    names: list[str] | None = None
    with opened_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            try:
                cells = json.loads(line)
            except ValueError as error:
                raise UnreadableDataError(f"{place}: not JSON ({error}).") from error
            if not isinstance(cells, dict):
                raise UnreadableDataError(f"{place}: not a JSON object, {{...}}, but {line.strip()[:60]!r}.")
            if names is None:
                names = list(cells)
                check_columns(file, columns, names)
            yield place, {name: cells.get(name) for name in wanted(columns, optional, cells)}
    if names is None:
        raise UnreadableDataError(f"{file}: the file is empty.")


def csv_rows(file: str, columns: tuple[str, ...], optional: tuple[str, ...] | None) -> Iterator[Row]:
    """Comma-separated cells, quoted as usual; the first row names the columns."""
    with opened_text(file, newline="") as lines:
        # Without `strict`, csv would read the rest of the file as one cell after a quotation mark that is not closed.
        reader = csv.reader(lines, strict=True)
        try:
            numbered = ((reader.line_num, cells) for cells in reader)
            yield from table_rows(file, numbered, columns, optional, "an unquoted comma or quotation mark")
        except csv.Error as error:
            raise UnreadableDataError(f"{file}, line {reader.line_num}: not CSV ({error}).") from error


def tsv_rows(file: str, columns: tuple[str, ...], optional: tuple[str, ...] | None) -> Iterator[Row]:
    """
    Tab-separated cells. As in SentEval's files, quotation marks have no special meaning; a warning says so where
    pandas or a spreadsheet seems to have quoted a cell.
    """
    with opened_text(file) as lines:
        numbered = (
            (number, line.removesuffix("\n").split("\t"))
            for number, line in enumerate(watched_for_quotes(file, lines), 1)
        )
        yield from table_rows(file, numbered, columns, optional, "a tab, which quotation marks do not protect in TSV")


def watched_for_quotes(file: str, lines: Iterable[str]) -> Iterator[str]:
    """The lines as they are, with a warning at the first that seems to have a quoted cell."""
    warned = False
    for number, line in enumerate(lines, start=1):
        if not warned and QUOTED_CELL.search(line):
            warned = True
            logger.warning(
                f"{file}, line {number}: a cell looks quoted, but quotation marks are part of the text in .tsv files. "
                "If they should not be, save it as .csv."
            )
        yield line


def table_rows(
    file: str,
    numbered: Iterator[tuple[int, list[str]]],
    columns: tuple[str, ...],
    optional: tuple[str, ...] | None,
    suspect: str,
) -> Iterator[Row]:
    """
    The requested cells of a table whose first row names the columns; blank lines are skipped. `suspect` is what makes
    a row too long or too short in this kind of file.
    """
    rows = ((number, cells) for number, cells in numbered if cells and cells != [""])
    _, header = next(rows, (0, None))
    if header is None:
        raise UnreadableDataError(f"{file}: the file is empty.")
    check_columns(file, columns, header)
    indices = {name: header.index(name) for name in wanted(columns, optional, header)}
    for number, cells in rows:
        place = f"{file}, line {number}"
        if len(cells) != len(header):
            raise UnreadableDataError(
                f"{place}: {len(cells)} cells, but the header has {len(header)} ({', '.join(header)}). Does the text "
                f"have {suspect}?"
            )
        yield place, {name: cells[index] for name, index in indices.items()}


def parquet_rows(file: str, columns: tuple[str, ...], optional: tuple[str, ...] | None) -> Iterator[Row]:
    """The rows of a Parquet file, read in batches."""
    with opened(file) as stream:
        table = parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        check_columns(file, columns, names)
        number = 0
        for batch in table.iter_batches(columns=wanted(columns, optional, names)):
            for cells in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", cells


def wanted(columns: tuple[str, ...], optional: tuple[str, ...] | None, found: Iterable[str]) -> list[str]:
    """The columns to read of those that a file, or a line of JSON, has: the requested ones, and the optional ones."""
    if optional is None:
        return list(dict.fromkeys([*found, *columns]))
    return [*columns, *(name for name in optional if name in found)]


def check_columns(file: str, columns: tuple[str, ...], found: list[str]) -> None:
    """
    Check that each requested column exists once.

    Raises:
        UnreadableDataError: if a column is missing or repeated.
    """
    missing = [name for name in columns if name not in found]
    if missing:
        raise MissingColumnError.of(file, missing, found)
    for name in columns:
        if found.count(name) > 1:
            raise UnreadableDataError(f"{file}: the column {name} occurs {found.count(name)} times.")


READERS: dict[str, Callable[[str, tuple[str, ...], tuple[str, ...] | None], Iterator[Row]]] = {
    ".txt": text_rows,
    ".jsonl": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
}


# --- What went wrong -------------------------------------------------------------------------------------------------


def explained(name: str, error: Exception) -> UnreadableDataError:
    """An error from the reader of a file or of a data set on the Hub, as one message that names the data."""
    if isinstance(error, UnreadableDataError):
        return error
    cause = error.__cause__ or error  # `datasets` wraps what its readers raise
    if isinstance(cause, UnreadableDataError):
        return cause
    return UnreadableDataError(f"{name} could not be loaded: {type(cause).__name__}: {cause}")


def load_or_explain(
    name: str, *arguments: Any, split: str = "train", **options: Any
) -> datasets.Dataset | datasets.IterableDataset:
    """`datasets.load_dataset`, whose exceptions become an `UnreadableDataError` that names the data set."""
    try:
        return datasets.load_dataset(*arguments, split=split, **options)
    except Exception as error:  # the builders and the Hub's client raise a dozen exceptions for bad input
        raise explained(name, error) from error


def not_utf8(place: str, error: UnicodeDecodeError) -> UnreadableDataError:
    """The error about bytes that are not UTF-8. Of UTF-16, which Windows programs write, the beginning is a mark."""
    is_utf16 = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    reason = "but UTF-16: save it as UTF-8" if is_utf16 else error.reason
    return UnreadableDataError(f"{place}: not UTF-8 ({reason}).")


def undecodable_line(file: str) -> str:
    """The file and the number, from 1, of its first line that is not UTF-8."""
    with opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"{file}, line {number}"
    return file
