"""Pages of the site that lie beside docs/: README.md is the first one. Their links are made to lead to pages."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
LINKS = {"](docs/": "](", "](CONTRIBUTING.md)": "](contributing.md)", "](LICENSE)": "](licence.md)"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    readme = (ROOT / "README.md").read_text()
    for link, to in LINKS.items():
        readme = readme.replace(link, to)
    pages = {
        "index.md": readme,
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "licence.md": f"# Licence\n\n```text\n{(ROOT / 'LICENSE').read_text()}```\n",
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files
