"""The repository keeps its shape: layout, light imports, quick help, a frozen command line, honest requirements."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

COMMANDS = ("prepare", "train", "export", "embed", "bench", "pictures")
TOP_LEVEL = {
    *("ramen_jax", "configs", "launch", "tests", "docs", ".ci", ".gitignore"),
    *("requirements.txt", "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE"),
}
CLI_SURFACE = "cli_surface.txt"
HELP_SECONDS = (
    8.0  # of processor time, whatever else the machine does; half of it where nothing is cached yet
)

# Without a place for these, a loader process would pay for JAX and lose its memory to it.
LIGHT_MODULES = (
    *("ramen_jax", "ramen_jax.sensors", "ramen_jax.sampling", "ramen_jax.config", "ramen_jax.console"),
    *("ramen_jax.visual.display", "ramen_jax.visual.figures", "ramen_jax.pictures"),
)
LIGHT_ROOMS = ("rows", "corpora", "earth", "visual", "benchmarks")
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


def test_sensors_travel_with_the_package(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    assert "*.yaml" in project["tool"]["setuptools"]["package-data"]["ramen_jax"]
    assert (repository / "ramen_jax" / "sensors.yaml").is_file()
