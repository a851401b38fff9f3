"""Write each company's texts into its folder: `texts.py FOLDER`. They come from Python's own library."""

from __future__ import annotations

import sys
from pathlib import Path

from fedtrain.trainer.library import library_documents

COMPANIES = {
    "alpha": ("pydoc_data.topics",),
    "beta": ("asyncio", "email", "http", "socket", "ssl", "urllib", "xmlrpc"),
    "gamma": ("_pydecimal", "collections", "csv", "fractions", "json", "random", "statistics", "tarfile"),
}


def write(folder: Path) -> None:
    """One file per document; what lies there already is written again."""
    for company, modules in COMPANIES.items():
        documents = [document for document in library_documents(modules, folder) if document]
        for number, document in enumerate(documents):
            path = folder / company / f"{number:04d}.txt"
            path.write_bytes(document)
            path.chmod(0o640)
        print(f"{company}: {len(documents)} texts, {sum(map(len, documents))} bytes")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
