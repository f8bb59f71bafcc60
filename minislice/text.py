"""Text in, token batches out: for calibration (section 3.4) and for perplexity (section 4)."""

import pydoc_data.topics
import sysconfig
import zlib
from pathlib import Path

# Folders of the standard library that are tests, tables or other people's packages.
_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data"),
    *("idlelib", "lib2to3", "ensurepip", "turtledemo", "__pycache__"),
}


def stdlib_documents(held_out: bool) -> list[str]:
    """The text that every CPython carries: the language reference and the standard library's sources.

    One document in ten is held out, chosen by a checksum of its *name*, so that the split is the same on every
    machine and (where a document exists in both) in every version of Python. The embedded models of `data/` were
    trained on ``held_out=False``; what is measured on ``held_out=True`` they have never seen.

    Returns the documents in a fixed order: reference topics first, then modules, each sorted by name.
    """
    library = Path(sysconfig.get_path("stdlib"))
    sources = {path.relative_to(library).as_posix(): path for path in library.rglob("*.py")}
    documents = {f"topics/{name}": text for name, text in pydoc_data.topics.topics.items()}
    for name in sorted(sources):
        if not _SKIPPED_FOLDERS & set(name.split("/")):
            documents[name] = sources[name].read_text(encoding="utf-8", errors="replace")
    return [text for name, text in documents.items() if (zlib.crc32(name.encode()) % 10 == 0) == held_out]
