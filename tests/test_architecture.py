"""Imports point one way: which room may import which package is written down here alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "ray": ("orchestrator/cluster/",),
    "mlflow": (
        "orchestrator/tracking/",
        "orchestrator/registry/registry.py",
        "orchestrator/registry/pyfunc.py",
        "orchestrator/registry/pyfunc_model.py",
    ),
    "boto3": ("orchestrator/storage/s3.py", "orchestrator/local_stack/s3_server.py"),
    "botocore": ("orchestrator/storage/s3.py", "orchestrator/local_stack/s3_server.py"),
    "ruamel": ("orchestrator/jobfile/",),
    "typer": ("orchestrator/cli/app.py", "orchestrator/commands/"),
}
PURE = ("orchestrator/training/", "orchestrator/evaluation/", "models/")
PURE_MAY_IMPORT = {"torch", "pydantic", "pydantic_core", "models", "orchestrator"}


def files() -> list[Path]:
    return sorted([*ROOT.glob("orchestrator/**/*.py"), *ROOT.glob("models/**/*.py")])


def imports(path: Path) -> set[str]:
    """The full names of all modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
    return names


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files(), ids=name)
def test_a_package_is_imported_only_where_it_belongs(path: Path) -> None:
    used = {module.split(".")[0] for module in imports(path)}
    misplaced = [
        package
        for package, places in ALLOWED.items()
        if package in used and not name(path).startswith(places)
    ]
    assert misplaced == []


@pytest.mark.parametrize("path", [p for p in files() if name(p).startswith(PURE)], ids=name)
def test_models_training_and_evaluation_need_torch_and_pydantic_alone(path: Path) -> None:
    import sys

    used = {module.split(".")[0] for module in imports(path)}
    assert used - set(sys.stdlib_module_names) <= PURE_MAY_IMPORT


@pytest.mark.parametrize("path", [p for p in files() if name(p).startswith("models/")], ids=name)
def test_models_know_nothing_of_the_orchestrator(path: Path) -> None:
    assert not any(module.split(".")[0] == "orchestrator" for module in imports(path))


@pytest.mark.parametrize("path", [p for p in files() if name(p).startswith("models/")], ids=name)
def test_a_model_imports_no_other_model(path: Path) -> None:
    """What two models need is in models/parts."""
    shared = ("models.base", "models.parts")
    assert [m for m in imports(path) if m.startswith("models.") and not m.startswith(shared)] == []


def test_the_training_room_knows_only_the_job_the_randomness_and_the_metrics() -> None:
    known = {
        "orchestrator.errors",
        "orchestrator.evaluation.kid",
        "orchestrator.evaluation.image_metrics",
        "orchestrator.config.job",
        "orchestrator.seeding",
    }
    for path in (ROOT / "orchestrator/training").glob("*.py"):
        ours = {m for m in imports(path) if m.startswith("orchestrator.")}
        assert {m for m in ours if not m.startswith("orchestrator.training")} <= known


@pytest.mark.parametrize("path", files(), ids=name)
def test_a_file_fits_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 345
