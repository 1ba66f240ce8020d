"""Pages of the site that lie beside docs/: README.md is the first one. Their links are made to lead to pages."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "licence.md": "LICENSE"}
LINKS = {"](docs/": "](", "](CONTRIBUTING.md)": "](contributing.md)", "](LICENSE)": "](licence.md)"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, name in PAGES.items():
        text = (ROOT / name).read_text()
        for link, to in LINKS.items():
            text = text.replace(link, to)
        if page == "licence.md":
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    return files
