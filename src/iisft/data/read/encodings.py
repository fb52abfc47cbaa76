"""What a file is when it is not UTF-8 text: which encoding, which packed or binary format, and what
converts it.
"""

import re
import shlex
import sys
from pathlib import Path

_GUNZIP = "gunzip -c {file} > {plain}"
_PARQUET = (
    "{{python}} -c 'import sys, pyarrow, pyarrow.parquet as p; "
    "p.write_table(pyarrow.ipc.open_{}(sys.argv[1]).read_all(), sys.argv[2])' {{file}} rows.parquet"
)
# First bytes -> name and the command that makes text of it. {file} is the quoted path.
_MAGIC = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "iconv -f UTF-32 -t UTF-8 {file} > {utf8}"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "iconv -f UTF-32 -t UTF-8 {file} > {utf8}"),
    (b"\xff\xfe", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {file} > {utf8}"),
    (b"\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {file} > {utf8}"),
    (b"PK\x03\x04", "a zip archive", "unzip {file}"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "zstd -dc {file} > {plain}"),
    (b"\x1f\x8b", "gzipped twice", _GUNZIP),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "git -C {folder} lfs pull",
    ),
    (b"<", "an HTML or XML page (a download that failed?)", ""),
    (b"BZh", "bzip2-compressed", "bunzip2 -c {file} > {plain}"),
    (b"\xfd7zXZ\x00", "xz-compressed", "unxz -c {file} > {plain}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x {file}"),
    (b"ARROW1", "an Arrow file", _PARQUET.format("file")),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream (a saved Hugging Face dataset)",
        _PARQUET.format("stream"),
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
# 44,34,76: commas, double quotes, UTF-8 (LibreOffice's filter options for CSV)
_EXCEL = (
    "libreoffice --headless --convert-to 'csv:Text - txt - csv (StarCalc):44,34,76' --outdir "
    "{folder} {file}"
)
_HIGH_RUNS = re.compile(rb"[\x80-\xff]+")


def foreign_format(head: bytes, file: Path) -> tuple[str, str] | None:
    """Name and fixing command when the first bytes are of a format that isn't read here, else
    None.
    """
    packed = head.startswith((b"PK", b"\xd0\xcf\x11\xe0"))  # the second: .xls
    if packed and (file.suffix.lower() in (".xlsx", ".xls") or b"xl/" in head):
        return "an Excel workbook", _command(_EXCEL, file)
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


def unpacking(file: Path) -> str:
    """The command that unpacks gzipped data."""
    return _command(_GUNZIP, file)


def conversion_of_lines(broken: bytes, file: Path) -> str:
    """What to do where other lines are UTF-8 and converting the whole file would garble them: grep
    tells the ones from the others, and those that were converted come last.
    """
    convert = (
        "(export LC_ALL=C.UTF-8; grep -ax '.*' {file}; grep -axv '.*' {file} | iconv -f "
        f"{guess(broken) or 'ENCODING'} -t UTF-8) > {{utf8}}"
    )
    return _command(convert, file)


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
    packed = file.suffix in (".gz", ".zst", ".bz2", ".xz")
    plain = file.with_suffix("") if packed else file.with_name(f"{file.stem}.plain{file.suffix}")
    return template.format(
        file=shlex.quote(str(file)),
        utf8=shlex.quote(str(utf8)),
        plain=shlex.quote(str(plain)),
        folder=shlex.quote(str(file.parent)),
        python=shlex.quote(sys.executable),
    )
