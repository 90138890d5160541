"""The rules of docs/architecture.md, held: who may import whom, and the tables of the docs against the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.settings import Settings

ROOT = Path(__file__).parent.parent
NEVER = {
    "shared": {"flask", "torch", "torchvision", "fastai", "web", "worker", "cli"},
    "web": {"torch", "torchvision", "fastai", "worker", "cli"},
    "worker": {"flask", "web", "cli"},
    "cli": {"torch", "torchvision", "fastai"},
}
TORCH_FREE = ["app", "child", "device", "run", "sweeper", "progress", "importing", "examining", "layouts", "packing", "scraping"]


def imports(path: Path, whole: bool = True) -> set[str]:
    """First parts of the names that a file imports, anywhere or (whole=False) at import time only."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if whole else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(NEVER))
def test_a_package_imports_only_what_it_may(package):
    for path in (ROOT / package).rglob("*.py"):
        assert not imports(path) & NEVER[package], path


def test_the_command_line_imports_web_and_worker_only_inside_the_function_that_starts_them():
    for path in (ROOT / "cli").rglob("*.py"):
        assert not imports(path, whole=False) & {"web", "worker"}, path


def test_only_the_worker_app_and_the_queue_know_celery():
    knowing = {path.relative_to(ROOT).as_posix() for p in NEVER for path in (ROOT / p).rglob("*.py") if "celery" in imports(path)}
    assert knowing <= {"shared/queue.py", "worker/app.py", "web/backend.py"}


@pytest.mark.parametrize("modules", [["cli.main"], ["web", "web.orders"], [f"worker.{name}" for name in TORCH_FREE]], ids=" ".join)
def test_importing_does_not_bring_torch(modules):
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_setting_is_in_the_operations_page_with_its_default():
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = dict(re.findall(r"^\| `DARKROOM_(\w+)` \| (.*)$", page, re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        assert str(field.description).split(";")[0] in rows[name.upper()], name


def test_no_file_names_a_package_registry():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    pattern = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|index-url\s*=|--find-links")
    for name in filter(None, tracked):
        path = ROOT / name
        if path == Path(__file__) or path.suffix in {".png", ".webp", ".ico", ".jpg"} or not path.is_file():
            continue
        assert not pattern.search(path.read_text(errors="ignore")), name


def test_every_route_of_the_api_is_in_its_page_and_the_other_way_round(tmp_path):
    from web import create_app

    app = create_app(Settings(storage=str(tmp_path)))
    routes = set()
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+(?:\([^)]*\))?:)?(\w+)>", r"<\1>", rule.rule)
        if path.startswith("/api/v1/") and rule.endpoint != "api.unknown":
            routes |= {f"{method} {path.removeprefix('/api/v1')}" for method in rule.methods - {"HEAD", "OPTIONS"}}
    documented = set(re.findall(r"^\| `((?:GET|POST|PUT|DELETE) [^`]+)` \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    assert documented == routes


def test_every_column_of_the_results_is_in_the_api_page():
    from shared.results import TOLD

    page = (ROOT / "docs" / "api.md").read_text()
    assert all(f"`{column}`" in page for column in TOLD.names)
