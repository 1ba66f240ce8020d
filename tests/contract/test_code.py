"""Rules about the code, checked by reading it: imports, names, unused functions."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from shared_models.protocol import keys
from tests.matrix import WITH_POSTGRES, WITH_REDIS
from tests.run import FOLDERS, LONG, paths_of

ROOT = Path(__file__).resolve().parent.parent.parent
SERVICES = ("ingest_service", "manage_service", "query_service")
PACKAGES = (*SERVICES, "shared_models")
OF_THE_DATABASE = ("django.db", "django.contrib.postgres", "psycopg2", "dj_database_url", "shared_models.models")


def files(*packages: str, kinds: tuple[str, ...] = (".py",)) -> list[Path]:
    """The source files of these top-level folders."""
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*")) if path.suffix in kinds]
    return [path for path in found if "__pycache__" not in path.parts]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, under its full name."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def literals(path: Path) -> Iterator[str]:
    """The texts in a file's code, docstrings left out."""
    tree = parse(path)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")


def names(path: Path) -> Iterator[str]:
    """The names in a file's code."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NAME:
            yield token.string


def offences(found: Iterator[tuple[Path, str]]) -> list[str]:
    """Readable, for the assertion."""
    return sorted({f"{path.relative_to(ROOT)}: {what}" for path, what in found})


def test_there_is_code_to_read() -> None:
    assert all(files(package) for package in ("shared_models", "query_service"))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_nothing_of_another(service: str) -> None:
    others = [other for other in SERVICES if other != service]
    assert not offences(
        (path, module) for path in files(service) for module in imports(path) for o in others if is_within(module, o)
    )


def test_what_is_shared_imports_no_service() -> None:
    assert not offences(
        (path, module)
        for path in files("shared_models")
        for module in imports(path)
        for service in SERVICES
        if is_within(module, service)
    )


def reachable(package: str) -> set[Path]:
    """The files of a package, and those of shared_models that they import, and so on."""
    found: set[Path] = set()
    pending = files(package)
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.add(path)
        for module in imports_at_run_time(path):
            if is_within(module, "shared_models"):
                base = ROOT.joinpath(*module.split("."))
                pending += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()]
    return found


def imports_at_run_time(path: Path) -> Iterator[str]:
    """`imports`, without those for the type checker only."""
    for_types = {
        module
        for node in ast.walk(parse(path))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom) and inner.module
        for module in (inner.module, *(f"{inner.module}.{alias.name}" for alias in inner.names))
    }
    return (module for module in imports(path) if module not in for_types)


def test_query_imports_neither_the_models_nor_a_database() -> None:
    assert not offences(
        (path, module)
        for path in reachable("query_service")
        for module in imports_at_run_time(path)
        for forbidden in OF_THE_DATABASE
        if is_within(module, forbidden)
    )


# A gunicorn.conf.py may name only this of the servers, except settings: the logger, by gunicorn's setting `logger_class`.
OF_THE_SERVERS = {
    ("shared_models/web/gunicorn_hooks.py", "gunicorn"),
    ("shared_models/web/gunicorn_hooks.py", "gunicorn.glogging"),
}


def test_nothing_reaches_into_a_server() -> None:
    """Documented settings and hooks only: no subclass of a worker, no patched method. (Private attributes: ruff's SLF.)"""
    assert not offences(
        (path, module)
        for path in files(*PACKAGES)
        for module in imports_at_run_time(path)
        for server in ("gunicorn", "uvicorn", "uvicorn_worker", "uvloop", "httptools")
        if is_within(module, server) and (str(path.relative_to(ROOT)), module) not in OF_THE_SERVERS
    )
    for service in SERVICES:
        conf = (ROOT / service / "gunicorn.conf.py").read_text()
        assert re.search(r'^worker_class = "uvicorn_worker\.UvicornWorker"', conf, re.MULTILINE)


def test_key_strings_stand_in_keys_py_only() -> None:
    prefix = keys.PREFIX.split(":")[0] + ":"
    # A problem's type, "urn:rollcall:…", is not a key.
    key = re.compile(rf"(?<!urn:){re.escape(prefix)}")
    sources = files(*PACKAGES, "loadtest", "compose") + files("shared_models", kinds=(".lua",))
    assert not offences(
        (path, text)
        for path in sources
        if path != ROOT / "shared_models" / "protocol" / "keys.py"
        for text in ([path.read_text()] if path.suffix == ".lua" else literals(path))
        if key.search(text)
    )


# Each of them takes as long as the counter is large, or more than the counter.
UNBOUNDED_COMMANDS = ("KEYS", "FLUSHALL", "FLUSHDB", "SMEMBERS", "HGETALL", "SUNION", "SINTER", "SDIFF", "SORT")
UNBOUNDED_METHODS = ("smembers", "flushall", "flushdb", "sunion", "sinter", "sdiff", "sunionstore", "sdiffstore")


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call))


def test_no_command_is_larger_than_a_chunk() -> None:
    def found() -> Iterator[tuple[Path, str]]:
        for path in files(*PACKAGES):
            for call in calls(path):
                if isinstance(call.func, ast.Attribute):
                    if call.func.attr in UNBOUNDED_METHODS:
                        yield path, f".{call.func.attr}()"
                    # `dict.keys()` has no argument; Redis' KEYS has a pattern.
                    if call.func.attr == "keys" and call.args:
                        yield path, ".keys(pattern)"
                    if call.func.attr == "execute_command":
                        first = call.args[0]
                        if isinstance(first, ast.Constant) and str(first.value).upper() in UNBOUNDED_COMMANDS:
                            yield path, str(first.value)
        for path in files("shared_models", kinds=(".lua",)):
            for command in re.findall(r"redis\.p?call\(\s*['\"](\w+)", path.read_text()):
                if command.upper() in UNBOUNDED_COMMANDS:
                    yield path, command

    assert not offences(found())


def test_scripts_name_every_key_through_KEYS() -> None:
    for path in files("shared_models", kinds=(".lua",)):
        text = re.sub(r"redis\.call\('(INFO|CLUSTER)', '\w+'\)", "", path.read_text())  # which have no key
        first_arguments = re.findall(r"redis\.p?call\(\s*'\w+',\s*([\w\[\]]+)", text)
        assert first_arguments or "redis." not in text, path
        # A function is handed its key: as the first argument of each call of it, which is looked at like any other.
        handed = dict(re.findall(r"^local function (\w+)\((\w+)", text, re.MULTILINE))
        first_arguments += re.findall(r"^ *raise_watermark\(([\w\[\]]+)", text, re.MULTILINE)
        # Either KEYS[n] itself, or a local that was assigned from it, or made of it by a function: it lies in the same slot.
        assigned = re.findall(r"^local ([\w, ]+) = (KEYS[^\n]*)$", path.read_text(), re.MULTILINE)
        local = {name for names_, _ in assigned for name in names_.split(", ")} | set(handed.values())
        made = ("set_of", "names_of", "days_of")
        local |= {*made, *re.findall(rf"local (\w+) = (?:{'|'.join(made)})\(", text), "intake", "marks"}
        pairs_ = re.findall(rf"local (\w+), (\w+) = [^\n]*(?:{'|'.join(made)})\(", text)
        local |= {name for pair in pairs_ for name in pair}
        assert {a for a in first_arguments if not re.fullmatch(r"KEYS\[\d\]", a)} <= local, path


def test_nobody_calls_utcnow() -> None:
    sources = files(*PACKAGES, "loadtest", "compose", "tests")
    assert not offences(
        (path, node.attr)
        for path in sources
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr in ("utcnow", "utcfromtimestamp")
    )


def test_no_failure_is_passed_over_in_silence() -> None:
    def is_silent(node: ast.AST) -> bool:
        if not isinstance(node, ast.ExceptHandler) or [type(line) for line in node.body] != [ast.Pass]:
            return False
        caught = node.type
        return caught is None or (isinstance(caught, ast.Name) and caught.id in ("Exception", "BaseException"))

    assert not offences(
        (path, f"line {node.lineno}")
        for path in files(*PACKAGES)
        for node in ast.walk(parse(path))
        if is_silent(node) and isinstance(node, ast.ExceptHandler)
    )


# The one place in the services that makes messages up, and so has to know what is in one.
GENERATOR = ("ingest_service/loading/generator.py", "ingest_service/management/commands/write_messages.py")


def fields_of_message() -> set[str]:
    """Read from models.py, so that this test needs no Django. `state` and `message` are left out: a counter has a
    state, and every error a message."""
    tree = parse(ROOT / "shared_models" / "models.py")
    (model,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Message")
    fields = {
        target.id
        for node in model.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert {"state", "city", "username", "message"} <= fields
    return fields - {"state", "message"}


def test_no_service_names_a_field_of_the_message() -> None:
    fields = fields_of_message()
    words = re.compile(r"[a-z_]+", re.IGNORECASE)
    sources = [path for path in files(*SERVICES) if str(path.relative_to(ROOT)) not in GENERATOR]
    assert not offences(
        (path, word)
        for path in sources
        for text in (*literals(path), *names(path))
        for word in words.findall(text)
        if word in fields
    )
    pages = files(*SERVICES, kinds=(".html", ".js"))
    assert not offences((path, w) for path in pages for w in words.findall(path.read_text()) if w in fields)


def test_no_service_names_a_declared_counter() -> None:
    from shared_models.declarations import COUNTERS

    declared = {counter.name for counter in COUNTERS}
    sources = [path for path in files(*SERVICES) if str(path.relative_to(ROOT)) not in GENERATOR]
    assert not offences((path, text) for path in sources for text in literals(path) if text in declared)


def test_every_module_says_what_it_is_for() -> None:
    assert not offences(
        (path, "no docstring")
        for path in files(*PACKAGES)
        if path.read_text().strip() and "migrations" not in path.parts and ast.get_docstring(parse(path)) is None
    )


def test_every_test_belongs_to_one_part_of_the_run() -> None:
    """`make test` runs the parts that are listed there: a folder that is forgotten would never be run."""
    parts = [set(ROOT.glob(f"tests/{part}/test_*.py")) | set(ROOT.glob(f"tests/{part}")) for part in FOLDERS]
    files = {path for path in (ROOT / "tests").rglob("test_*.py") if not path.name.startswith(".")}
    assert {path: sum(path in part for part in parts) for path in files} == dict.fromkeys(files, 1)
    assert all(paths_of(part) for part in (*WITH_POSTGRES, *WITH_REDIS))
    in_long = {path for part in LONG for path in (*ROOT.glob(f"tests/{part}/test_*.py"), *ROOT.glob(f"tests/{part}"))}
    assert {path for path in files if re.search(r"mark\.long\b", path.read_text())} <= in_long
