"""Imports run one way: this table says which package may import which."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ROOT / "orchestrator"

MAY_IMPORT: dict[str, str] = {
    # package: the packages below it that it may import. Every package may import errors, seeding,
    # redaction, console and image_grid, which stand at the top of orchestrator/.
    "models": "",
    "evaluation": "models",
    "config": "evaluation models",
    "report": "config",
    "storage": "",
    "training": "config evaluation models",
    "data.format": "storage",
    "data.loading": "config data.format models storage",
    "data.prepare": "data.format storage",
    "data.datasets": "config data.format data.prepare storage",
    "tracking": "config",
    "model_evaluation": "data.format data.loading evaluation models storage",
    "registry": "config evaluation model_evaluation models tracking",
    "page": "models",
    "export": "data.format model_evaluation models page registry",
    "sampling": "data.format data.loading data.prepare models registry storage",
    "serving": "data.format export models page registry sampling",
    "runs": (
        "config data.datasets data.format data.loading evaluation export model_evaluation models "
        "registry storage tracking training"
    ),
    "sweeps": "config data.datasets data.loading report runs storage tracking training",
    "run_report": "config evaluation models report runs storage tracking",
    "diagnostics": (
        "config data.datasets data.format data.loading models report runs storage sweeps tracking "
        "training"
    ),
    "cluster": "config diagnostics models runs serving storage sweeps training",
    "kubernetes": "config",
    "local_stack": "",
    "faults": "config data.prepare diagnostics local_stack runs storage tracking",
    "cli": (
        "cluster config data.datasets data.format data.prepare diagnostics export faults "
        "kubernetes local_stack model_evaluation registry report run_report runs sampling serving "
        "storage sweeps tracking"  # relocate changes MLflow's database
    ),
}
NEEDS_ONLY_TORCH_AND_PYDANTIC = ("models", "training", "evaluation")
EXTRACTORS = "orchestrator.evaluation.extractors."
"""These may import torchvision and onnxruntime too, when an extractor is made."""
LIBRARIES: dict[str, tuple[str, ...]] = {
    # library: the packages or files that may import it
    "ray": ("cluster/",),
    "mlflow": ("tracking/", "registry/"),
    "boto3": ("storage/s3.py", "local_stack/s3_server.py"),
    "botocore": (
        "storage/s3.py",
        "storage/s3_errors.py",
        "storage/s3_settings.py",
        "local_stack/s3_server.py",
    ),
    "obstore": ("storage/cloud.py", "storage/cloud_settings.py"),
    "torchvision": ("evaluation/extractors/inception_network.py",),
    "onnxruntime": (
        "evaluation/extractors/onnx_file.py",
        "export/onnx_program.py",
        "export/onnx_session.py",
    ),
    "onnx": ("export/onnx_program.py",),
    "onnxscript": ("export/onnx_program.py",),
    "ruamel": ("config/",),
    "typer": ("cli/",),
    "fastapi": ("serving/",),
    "starlette": ("serving/", "cluster/serve_deployment.py"),
    "uvicorn": ("serving/http_server.py",),
    "prometheus_client": ("serving/service_metrics.py",),
}
SAME_SUBJECT = {"__init__", "driver", "report"}
"""Stems that several packages use for the same thing; a file in cli/ is named as its subject."""


@cache
def modules() -> dict[str, Path]:
    """The product's modules by their full names; orchestrator/models is a link to models/."""
    found = [*PRODUCT.rglob("*.py"), *(PRODUCT / "models").rglob("*.py")]
    names = {}
    for path in sorted(set(found)):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def package_of(module: str) -> str:
    """The package in the table that ``module`` belongs to; "" for those at the top."""
    parts = module.split(".")[1:]
    depth = 2 if parts[:1] == ["data"] else 1
    found = parts[:depth]
    return ".".join(found) if len(found) == depth and PRODUCT.joinpath(*found).is_dir() else ""


def imported(path: Path) -> set[str]:
    """All modules that a file imports: also in functions, and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else str(node.module) for name in names}
    return found


def of_this_project(path: Path) -> set[str]:
    return {module for module in imported(path) if module.split(".")[0] == "orchestrator"}


def test_imports_run_down() -> None:
    upward = []
    for module, path in modules().items():
        package = package_of(module)
        allowed = set(MAY_IMPORT.get(package, "").split()) | {"", package}
        if module == "orchestrator.__main__":
            allowed |= {"cli"}
        used = {other for other in of_this_project(path) if package_of(other) not in allowed}
        upward += [f"{module} -> {other}" for other in sorted(used)]
    assert upward == []


def test_the_table_has_no_circle_and_names_every_package() -> None:
    below: set[str] = set()
    for package, allowed in MAY_IMPORT.items():
        up = set(allowed.split()) - below
        assert not up, f"{package} imports {up}, which stand above it"
        below.add(package)
    assert {package_of(module) for module in modules()} - {""} == set(MAY_IMPORT)


def test_no_entry_of_the_table_is_unused() -> None:
    used: dict[str, set[str]] = {package: set() for package in MAY_IMPORT}
    for module, path in modules().items():
        package = package_of(module)
        if package in used:
            used[package] |= {package_of(other) for other in of_this_project(path)}
    unused = {
        package: set(allowed.split()) - used[package] for package, allowed in MAY_IMPORT.items()
    }
    assert {package: names for package, names in unused.items() if names} == {}


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {
        module: of_this_project(path) & modules().keys() for module, path in modules().items()
    }
    while leaves := {module for module, below in arrows.items() if not below}:
        arrows = {m: below - leaves for m, below in arrows.items() if m not in leaves}
    assert sorted(arrows) == []


def test_a_library_is_imported_only_where_it_belongs() -> None:
    misplaced = []
    for module, path in modules().items():
        place = path.relative_to(PRODUCT).as_posix()
        used = {name.split(".")[0] for name in imported(path)}
        misplaced += [
            f"{module} -> {library}"
            for library, places in LIBRARIES.items()
            if library in used and not place.startswith(places)
        ]
    assert misplaced == []


def test_models_training_and_evaluation_need_torch_and_pydantic_alone() -> None:
    needed = {"orchestrator", "torch", "pydantic", "pydantic_core", *sys.stdlib_module_names}
    others = {
        module: {name.split(".")[0] for name in imported(path)}
        - needed
        - ({"torchvision", "onnxruntime"} if module.startswith(EXTRACTORS) else set())
        for module, path in modules().items()
        if package_of(module) in NEEDS_ONLY_TORCH_AND_PYDANTIC
    }
    assert {module: used for module, used in others.items() if used} == {}


@pytest.mark.parametrize(
    "module",
    [
        "orchestrator.models.pix2pix",
        "orchestrator.training.loop",
        "orchestrator.evaluation.extractors.onnx_file, orchestrator.evaluation.measure",
        "orchestrator.export.export_model, orchestrator.export.real_conditions",
    ],
    ids=["models", "training", "extractors", "export"],
)
def test_importing_models_and_training_loads_none_of_the_other_libraries(module: str) -> None:
    import subprocess

    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "pydantic"} <= set(done.stdout.split())
    others = {"ruamel", "boto3", "botocore", "ray", "mlflow", "torchvision", "onnxruntime"}
    others |= {"onnx", "onnxscript"}
    assert set(done.stdout.split()) & others == set()


def test_a_model_imports_no_other_model() -> None:
    """What two models share is in models/parts; the types of their options are all jobs'."""
    shared = ("orchestrator.models.base", "orchestrator.models.parts", "orchestrator.bounds")
    for module, path in modules().items():
        if package_of(module) == "models":
            others = of_this_project(path) - {"orchestrator.models"}
            assert all(other.startswith(shared) for other in others), module


def test_a_stem_names_one_subject() -> None:
    places: dict[str, list[str]] = {}
    for module, path in modules().items():
        package = package_of(module)
        if package not in ("models", "cli") and path.stem not in SAME_SUBJECT:
            places.setdefault(path.stem, []).append(module)
    assert {stem: found for stem, found in places.items() if len(found) > 1} == {}


def test_no_two_test_files_have_the_same_name() -> None:
    """pytest imports them as top-level modules, and refuses the second of a name."""
    places: dict[str, list[str]] = {}
    for path in Path(__file__).parent.rglob("test_*.py"):
        places.setdefault(path.name, []).append(str(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_a_file_has_at_most_350_lines() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    assert {module: length for module, length in lengths.items() if length > 350} == {}


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for module, path in modules().items():
        if package_of(module) != "models":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 70:
                    long.append(f"{module}.{node.name}: {lines}")
    assert long == []


def opens_without_formats(node: ast.AST) -> bool:
    """Whether it is a call of Pillow's ``open`` that does not name PNG as the only format."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in (
        "Image.open",
        "PIL.Image.open",
    ):
        return False
    formats = [ast.unparse(word.value) for word in node.keywords if word.arg == "formats"]
    return formats != ["('PNG',)"]


def test_files_of_others_are_opened_as_images_in_one_place_alone() -> None:
    folders = ("benchmarks", "deploy", "docs", "models", "orchestrator")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted({path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py")})
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and opens_without_formats(node)
    ]
    assert [place.partition(":")[0] for place in found] == [
        "orchestrator/data/format/image_files.py"
    ]
    pages = [path.read_text() for path in ROOT.glob("docs/**/*.md")]
    calls = [call for page in pages for call in re.findall(r"Image\.open\([^)]*\)", page)]
    assert [call for call in calls if "formats=" not in call] == []


@pytest.mark.parametrize(
    "code", ["Image.open(path)", "Image.open(path, formats=None)", "PIL.Image.open(path)"]
)
def test_an_opening_without_formats_is_found(code: str) -> None:
    assert opens_without_formats(ast.parse(code, mode="eval").body)
