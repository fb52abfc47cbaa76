"""What a file is when it is not UTF-8 text: which encoding, which packed or binary format, and what
converts it.
"""

import re
import shlex
from pathlib import Path

# First bytes -> name and the command that makes text of it. {file} is the quoted path.
_MAGIC = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "iconv -f UTF-32 -t UTF-8 {file} > {utf8}"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "iconv -f UTF-32 -t UTF-8 {file} > {utf8}"),
    (b"\xff\xfe", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {file} > {utf8}"),
    (b"\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {file} > {utf8}"),
    (
        b"PK\x03\x04",
        "a zip archive (or an Excel or Word file)",
        "unzip it; save a spreadsheet as CSV (UTF-8)",
    ),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "zstd -d {file}"),
    (b"\x1f\x8b", "gzipped twice", "gunzip -k {file}"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "git lfs pull"),
    (b"<", "an HTML or XML page (a download that failed?)", ""),
    (b"BZh", "bzip2-compressed", "bunzip2 -k {file}"),
    (b"\xfd7zXZ\x00", "xz-compressed", "unxz -k {file}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x {file}"),
    (b"ARROW1", "an Arrow file", "write it as Parquet: pyarrow.parquet.write_table"),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream (a saved Hugging Face dataset)",
        'dataset.to_json("rows.jsonl")',
    ),
    (b"%PDF", "a PDF", ""),
    (b"\x89PNG", "a picture", ""),
    (b"\xff\xd8\xff", "a picture", ""),
    (b"\x7fELF", "a program", ""),
    (
        b"SQLite format 3\x00",
        "an SQLite database",
        "sqlite3 -csv -header {file} 'select ...' > rows.csv",
    ),
    (b"\x80\x04", "a Python pickle", "never loaded, it could run code: write it as JSON lines"),
    (
        b"\x80\x02",
        "a Python pickle (perhaps a torch file)",
        "never loaded, it could run code: write it as JSON lines",
    ),
)
# StarCalc's filter: commas, double quotes, UTF-8
_OFFICE = "soffice --headless --convert-to 'csv:Text - txt - csv (StarCalc):44,34,76' {file}"
_EXCEL = (".xlsx", ".xlsm", ".xls", ".ods")
_PACKED_OFFICE = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
_HIGH_RUNS = re.compile(rb"[\x80-\xff]+")


def foreign_format(head: bytes, file: Path) -> tuple[str, str] | None:
    """Name and fixing command when the first bytes are of a format that isn't read here, else
    None.
    """
    if head.startswith(_PACKED_OFFICE) and (file.suffix.lower() in _EXCEL or b"xl/" in head):
        return "an Excel file or another spreadsheet", _command(_OFFICE, file)
    for magic, name, command in _MAGIC:
        if head.startswith(magic):
            return name, _command(command, file)
    if wide := _wide_encoding(head):
        return f"{wide} text", _command(f"iconv -f {wide} -t UTF-8 {{file}} > {{utf8}}", file)
    written = head.rstrip(b"\0")  # a torn file ends in NUL bytes
    if (head and not written) or sum(byte < 9 or 13 < byte < 32 for byte in written) > len(
        written
    ) // 10:
        return "binary data", ""
    return None


def guess(broken: bytes) -> str:
    """The most likely encoding of bytes that are not UTF-8: a name that iconv knows, or ''.

    In GBK text high bytes come in pairs and more; in Latin text nearly always alone.
    """
    runs = _HIGH_RUNS.findall(broken)
    high = sum(map(len, runs))
    paired = sum(len(run) for run in runs if len(run) > 1)
    if high and paired * 2 >= high and _decodes(broken, "gb18030"):
        return "GB18030"
    return "WINDOWS-1252" if high and _decodes(broken, "cp1252") else ""


def conversion(encoding: str, file: Path) -> str:
    """The command that converts `file` to UTF-8."""
    return _command(f"iconv -f {encoding or 'ENCODING'} -t UTF-8 {{file}} > {{utf8}}", file)


def conversion_of_line(broken: bytes, file: Path, line: int) -> str:
    """What to do where other lines are UTF-8 and converting the whole file would garble them."""
    convert = (
        f"sed -n {line}p {shlex.quote(str(file))} | iconv -f {guess(broken) or 'ENCODING'} -t UTF-8"
    )
    return f"other rows are UTF-8, convert this one alone: {convert}"


def has_utf8_lines(file: Path) -> bool:
    """Whether a line near the beginning is UTF-8 beyond ASCII."""
    with file.open("rb") as stream:
        lines = stream.read(2**20).split(b"\n")[:-1]
    return any(not line.isascii() and _decodes(line, "utf-8") for line in lines)


def shown_name(encoding: str) -> str:
    return {
        "GB18030": "GBK (GB18030)",
        "WINDOWS-1252": "Latin (Windows-1252)",
        "": "an unknown encoding",
    }[encoding]


def _wide_encoding(head: bytes) -> str:
    """UTF-16 without a byte order mark: in text with ASCII in it, every other byte is NUL."""
    even, odd = head[0:200:2], head[1:200:2]
    if len(odd) > 3 and odd.count(0) > 0.4 * len(odd) and even.count(0) < 0.1 * len(even):
        return "UTF-16LE"
    if len(even) > 3 and even.count(0) > 0.4 * len(even) and odd.count(0) < 0.1 * len(odd):
        return "UTF-16BE"
    return ""


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _command(template: str, file: Path) -> str:
    utf8 = file.with_name(f"{file.stem}.utf8{file.suffix}")
    return template.format(file=shlex.quote(str(file)), utf8=shlex.quote(str(utf8)))
