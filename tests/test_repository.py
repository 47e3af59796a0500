"""The repository keeps its shape: layout, light imports, quick help, a frozen command line, honest requirements."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ramen_jax.earth.layouts import write_worldstrat

COMMANDS = (
    "prepare",
    "train",
    "export",
    "embed",
    "bench",
    "pictures",
    "evaluate",
    "compile_check",
    "checkpoint",
    "doctor",
)
TOP_LEVEL = {
    *("ramen_jax", "configs", "launch", "tests", "docs", ".ci", ".gitignore"),
    *("requirements.txt", "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE"),
}
CLI_SURFACE = "cli_surface.txt"
HELP_SECONDS = 1.5  # of processor time: no JAX; a second on an idle machine

# Without a place for these, a loader process would pay for JAX and lose its memory to it.
LIGHT_MODULES = (
    *("ramen_jax", "ramen_jax.sensors", "ramen_jax.sampling", "ramen_jax.config", "ramen_jax.console"),
    *("ramen_jax.visual.display", "ramen_jax.visual.figures", "ramen_jax.pictures"),
)
LIGHT_ROOMS = ("rows", "corpora", "earth", "visual", "evaluation/pangaea/tasks")
HEAVY = ("jax", "torch", "flax", "tensorflow", "optax", "orbax")


def tracked(repository: Path) -> list[str]:
    """Paths of the files git knows; the test is skipped outside a checkout (a source archive)."""
    listing = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("needs a git checkout: the tracked files are asked of git")
    return [name for name in listing.stdout.splitlines() if (repository / name).is_file()]


def light_modules(repository: Path) -> list[str]:
    package = repository / "ramen_jax"
    files = sorted(
        path for room in LIGHT_ROOMS for path in (package / room).rglob("*.py") if path.name != "__init__.py"
    )
    names = [".".join(path.relative_to(repository).with_suffix("").parts) for path in files]
    return [*LIGHT_MODULES, *names]


# From the ground up: a room imports only from rooms above it in this list (its own modules included).
FLOORS = (
    *("allocator", "console", "storage", "counter_rng", "documents", "limits", "own_files"),
    *("sampling", "sensors", "recipe"),
    *("samples", "no_data"),
    *("config_rules", "config"),
    *("visual", "earth"),
    *("corpora", "rows"),
    *("attention", "model", "parallel"),
    *("inference", "interchange", "training"),
    *("embedding", "evaluation", "api", "benchmarks"),
)


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, module) of what a file imports of the package, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = path.parents[len(node.module.split(".")) - 1] if node.module == "ramen_jax" else None
            names = [f"{node.module}.{alias.name}" for alias in node.names] if inside else [node.module]
            found += [(node.lineno, name) for name in names]
    return [(line, name) for line, name in found if name.startswith("ramen_jax.")]


def test_rooms_import_only_what_lies_below_them(repository):
    """Commands stand above all rooms. (Mutant: `from ramen_jax import api` in a reader.)"""
    package = repository / "ramen_jax"
    wrong = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for line, name in imports_of(path):
            other = name.split(".")[1]
            above = (
                other not in FLOORS or FLOORS.index(other) > FLOORS.index(room) if room in FLOORS else False
            )
            if above and other != "__version__":
                wrong.append(f"{path.relative_to(repository)}:{line}: {room} imports {other}")
    assert wrong == []


def test_every_room_has_its_floor(repository):
    package = repository / "ramen_jax"
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"} - set(COMMANDS)
    assert rooms | modules == set(FLOORS)


def test_no_file_is_too_long_to_be_one_thing(repository):
    """500 lines, but for the one-file PyTorch model, which is shipped alone."""
    long = [
        f"{path.relative_to(repository)}: {lines}"
        for folder in ("ramen_jax", "tests", "configs")
        for path in (repository / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 500 and path.name != "torch_ramen.py"
    ]
    assert long == []


def python(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(repository)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_top_level(repository):
    found = {name.split("/")[0] for name in tracked(repository)}
    assert found == TOP_LEVEL


def test_no_tracked_file_names_a_place_outside_the_repository(repository):
    places = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users)/\w|\.\./shared")
    texts = (".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".json")
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in tracked(repository)
        if name.endswith(texts) and name != "tests/test_repository.py"
        for number, line in enumerate((repository / name).read_text().splitlines(), 1)
        if places.search(line)
    ]
    assert found == []


def test_nothing_unfinished_and_nothing_executed_from_data(repository):
    """No TODO, no silenced checker, no pickle and no eval in the package."""
    forbidden = re.compile(
        r"\b(?:TODO|FIXME|XXX)\b|#\s*type:\s*ignore|#\s*noqa|\bpickle\.loads?\(|(?<![\w.])eval\("
        r"|(?<![\w.])exec\(|yaml\.load\((?!.*SafeLoader)|weights_only=False|allow_pickle=True"
    )
    found = [
        f"{path.relative_to(repository)}:{number}: {line.strip()}"
        for path in sorted((repository / "ramen_jax").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if forbidden.search(line)
    ]
    assert found == []


def test_light_modules_do_not_import_jax(repository):
    program = (
        "import importlib, sys\n"
        f"for name in {light_modules(repository)!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [module for module in {HEAVY!r} if module in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    result = python(repository, "-c", program)
    assert result.returncode == 0, result.stderr


def processor_seconds() -> float:
    """Processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def options(help_text: str) -> list[str]:
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", help_text.split("examples:")[0])))


@pytest.fixture(scope="module")
def help_texts(repository) -> dict[str, tuple[float, str]]:
    """Command -> (seconds, text) of its --help."""
    texts = {}
    for command in COMMANDS:
        began = processor_seconds()
        result = python(repository, "-m", f"ramen_jax.{command}", "--help")
        assert result.returncode == 0, f"{command} --help: {result.stderr}"
        texts[command] = (processor_seconds() - began, result.stdout)
    return texts


def test_help_is_quick_and_shows_examples(help_texts):
    for command, (seconds, text) in help_texts.items():
        assert seconds < HELP_SECONDS, f"{command} --help took {seconds:.1f} s"
        assert f"python -m ramen_jax.{command}" in text.split("examples:")[-1], (
            f"{command} --help shows no example"
        )


def test_every_command_is_listed(repository):
    found = {
        path.stem
        for path in (repository / "ramen_jax").glob("*.py")
        if re.search(r'^if __name__ == "__main__":', path.read_text(), re.MULTILINE)
    }
    assert found == set(COMMANDS)


def test_command_line_is_frozen(repository, help_texts):
    """An option that comes, goes or changes its name is a decision: it shows in the diff of the listing."""
    listing = "".join(f"{command} {' '.join(options(text))}\n" for command, (_, text) in help_texts.items())
    frozen = (Path(__file__).parent / CLI_SURFACE).read_text()
    assert listing == frozen, f"if that is meant, write this into tests/{CLI_SURFACE}:\n{listing}"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_a_usage_error_without_traceback(repository, command):
    result = python(repository, "-m", f"ramen_jax.{command}", "--no-such-option")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "error:" in result.stderr


def requirements(repository: Path) -> list[Requirement]:
    lines = (
        line.split("#")[0].strip() for line in (repository / "requirements.txt").read_text().splitlines()
    )
    return [Requirement(line) for line in lines if line]


def test_requirements_name_floor_and_ceiling_and_hold_here(repository):
    for requirement in requirements(repository):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, f"{requirement} needs a floor and a ceiling"
        found = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(found), f"{requirement}: {found} is installed"


def test_every_import_is_required(repository):
    """What the package imports is in requirements.txt, or in an extra and only imported where it is used."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = [
        Requirement(text) for name in ("torch", "beam") for text in project["optional-dependencies"][name]
    ]
    named = {
        requirement.name.lower().replace("-", "_") for requirement in [*requirements(repository), *extras]
    }
    distributions = {
        "yaml": "pyyaml",
        "orbax": "orbax_checkpoint",
        "tensorboardX": "tensorboardx",
        "absl": "absl_py",
    }
    missing = {}
    for path in (repository / "ramen_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            for top in (
                {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"ramen_jax"}
            ):
                if distributions.get(top, top) not in named:
                    missing[f"{path.name}:{node.lineno}"] = top
    assert missing == {}


@pytest.mark.slow
def test_an_installed_wheel_prepares_a_corpus(repository, tmp_path):
    """Sensors and descriptions travel inside the package. (Mutant: descriptions left out of the package data.)"""
    copy = tmp_path / "checkout"
    for name in tracked(repository):
        if name.startswith("ramen_jax/") or name in (
            "pyproject.toml",
            "requirements.txt",
            "README.md",
            "LICENSE",
        ):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, copy / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    originals, output = tmp_path / "originals", tmp_path / "prepared"
    write_worldstrat(originals, places=3, seed=0)
    command = ["-m", "ramen_jax.prepare", "--corpus", "worldstrat", "--source", originals, "--output", output]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = [sys.executable, "-c", "import ramen_jax; print(ramen_jax.__file__)"]
    shown = subprocess.run(where, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(str(installed))
    done = subprocess.run(
        [sys.executable, *map(str, command), "--workers", "1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (output / "manifest.json").is_file()
