"""What is in launch/: checked with the tools of its formats, and run with stand-ins for clusters that are not here."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LOCAL = "launch/local_processes.py"


def tool(name: str, *arguments: str, folder: Path) -> None:
    """Runs a checker that the `test` extra installs. Nothing may be found."""
    program = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"needs {name}: pip install '.[test]'")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_scripts_pass_shellcheck(repository):
    scripts = sorted(str(path.relative_to(repository)) for path in (repository / "launch").glob("*.s[hb]*"))
    assert {"launch/slurm.sbatch", "launch/tpu_queued.sh", "launch/test.sh"} <= set(scripts)
    tool("shellcheck", "--severity=warning", *scripts, ".ci/run", folder=repository)


def test_dockerfiles_pass_hadolint(repository):
    tool("hadolint", "launch/Dockerfile.cuda", "launch/Dockerfile.tpu", folder=repository)


def test_the_jobset_passes_yamllint(repository):
    rules = "{extends: default, rules: {line-length: {max: 120}}}"
    tool("yamllint", "--strict", "--config-data", rules, "launch/gke_jobset.yaml", folder=repository)


def closed(required: list[str], **properties: dict) -> dict:
    """The schema of an object that has no other fields."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


# Fields and types of JobSet v0.8.0 (its CustomResourceDefinition, version v1alpha2), without those that are objects
# and not used here: coordinator, network, startupPolicy, successPolicy, rules, dependsOn. `template` is that of a Job.
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
JOBSET = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed(
        ["name"], name=TEXT, namespace=TEXT, labels={"type": "object"}, annotations={"type": "object"}
    ),
    spec=closed(
        ["replicatedJobs"],
        failurePolicy=closed(
            [], maxRestarts=COUNT, restartStrategy={"enum": ["Recreate", "BlockingRecreate"]}
        ),
        managedBy=TEXT,
        suspend=FLAG,
        ttlSecondsAfterFinished=COUNT,
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": closed(["name", "template"], name=TEXT, replicas=COUNT, template={"type": "object"}),
        },
    ),
)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("maxRestarts", "maxRestart"), ("replicas: 1", "replicas: one"), ("replicatedJobs", "replicatedJob")],
)
def test_the_jobset_has_the_fields_of_jobset(repository, right, wrong):
    """kubernetes-validate knows no extensions. (Mutants: those of the parameters.)"""
    jsonschema = pytest.importorskip("jsonschema")
    text = (repository / "launch/gke_jobset.yaml").read_text()
    jsonschema.validate(yaml.safe_load(text), JOBSET)
    assert right in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text.replace(right, wrong)), JOBSET)


def test_the_job_in_the_jobset_is_one_of_kubernetes(repository):
    """And pods of a slice have its nodes alone, by an annotation where JobSet looks for it: on itself or on the Job."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    document = yaml.safe_load((repository / "launch/gke_jobset.yaml").read_text())
    (replicated,) = document["spec"]["replicatedJobs"]
    assert "alpha.jobset.sigs.k8s.io/exclusive-topology" in replicated["template"]["metadata"]["annotations"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        **replicated["template"],
    }
    kubernetes_validate.validate(job, "1.37", strict=True)
    spec = replicated["template"]["spec"]
    x, y = map(int, spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    (container,) = spec["template"]["spec"]["containers"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert spec["parallelism"] == spec["completions"] == x * y // chips
    broken = json.loads(json.dumps(job).replace("restartPolicy", "restartPolicies"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_the_command_in_the_jobset_is_understood(repository):
    """(Mutant: a corpus that configs/base.py does not have.)"""
    document = yaml.safe_load((repository / "launch/gke_jobset.yaml").read_text())
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    module, *arguments = job["template"]["spec"]["containers"][0]["args"]
    arguments = ["--workdir=run" if text.startswith("--workdir") else text for text in arguments]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--print-config"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("prepared = '/data/") == 3


def surface(repository):
    """Command -> its options."""
    lines = (repository / "tests" / "cli_surface.txt").read_text().splitlines()
    return {line.split()[0]: set(line.split()[1:]) for line in lines}


def test_launch_files_and_pages_name_options_that_exist(repository):
    """(Mutant: --distribute in the JobSet.)"""
    known, named = surface(repository), 0
    files = [path for path in (repository / "launch").iterdir() if path.suffix != ".txt" and path.is_file()]
    for path in [*files, *(repository / "docs").glob("*.md"), repository / "README.md"]:
        text = re.sub(r"\\\n\s*(?:#\s*)?", " ", path.read_text())
        text = re.sub(r"\n\s+- (--)", r" \1", text)  # arguments of a container
        for command, rest in re.findall(r"ramen_jax\.(\w+)([^\n`]*)", text):
            if command in known:
                used = re.findall(
                    r"(?<![\w-])--[a-z][a-z-]*(?![\w.-])", rest.split("ramen_jax.")[0].split(" #")[0]
                )
                named += len(used)
                assert set(used) <= known[command], f"{path.name}: {command} {set(used) - known[command]}"
    assert named > 20


# -- local_processes.py ------------------------------------------------------------------------------------------------

MEMBER = """
import os, pathlib, signal, sys, time
number, folder, what = os.environ["JAX_PROCESS_ID"], pathlib.Path(sys.argv[1]), sys.argv[2]
port = os.environ["JAX_COORDINATOR_ADDRESS"]
attempt = len(list(folder.glob(f"{number}.*")))
told = [port, os.environ["JAX_NUM_PROCESSES"], os.environ.get("CUDA_VISIBLE_DEVICES", "all")]
(folder / f"{number}.{attempt}").write_text(" ".join(told))
print("attempt", attempt, flush=True)
if what == "dies" and attempt < 2:
    if number == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(1)
if what == "wrong":
    sys.exit(2 if number == "0" else 0)
if what == "waits":
    signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), sys.exit(0)))
    time.sleep(60)
"""


def local(repository, folder, what, *options):
    command = [sys.executable, LOCAL, *options, "--", sys.executable, "-c", MEMBER, str(folder), what]
    return subprocess.Popen(
        command, cwd=repository, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_local_processes_know_each_other(repository, tmp_path):
    process = local(repository, tmp_path, "works", "--processes", "3", "--gpus-each", "2")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert sorted(out.splitlines()) == ["[0] attempt 0", "[1] attempt 0", "[2] attempt 0"]
    told = [(tmp_path / f"{number}.0").read_text().split() for number in range(3)]
    assert len({address for address, _, _ in told}) == 1
    assert [(count, gpus) for _, count, gpus in told] == [("3", "0,1"), ("3", "2,3"), ("3", "4,5")]


def test_a_process_that_dies_is_started_again_with_the_others(repository, tmp_path):
    """(Mutants: the dead one alone is started again; the old port is used again; restarts without end.)"""
    process = local(repository, tmp_path, "dies")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors.count("died") == 2
    assert [line for line in out.splitlines() if line.startswith("[0]")] == [
        f"[0] attempt {n}" for n in range(3)
    ]
    ports = {(tmp_path / f"0.{attempt}").read_text().split()[0] for attempt in range(3)}
    assert len(ports) > 1
    for file in tmp_path.iterdir():
        file.unlink()
    process = local(repository, tmp_path, "dies", "--restarts", "1")
    assert "no more restarts" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


def test_an_error_that_would_come_again_ends_the_run(repository, tmp_path):
    process = local(repository, tmp_path, "wrong")
    assert "ended by itself (process 0: 2, process 1: 0)" in process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_sigterm_reaches_all(repository, tmp_path):
    process = local(repository, tmp_path, "waits")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # both have their handler
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(line for line in out.splitlines() if "saving" in line) == ["[0] saving", "[1] saving"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no command"),
        (["--processes", "0", "--", "true"], "at least 1"),
        (["--", "no-such-program"], "No such file"),
    ],
)
def test_what_cannot_be_started_is_one_line(repository, arguments, told):
    done = subprocess.run(
        [sys.executable, LOCAL, *arguments], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_killed_process_of_a_training_costs_no_step(repository, tmp_path):
    """Losses of two processes, one of which is killed on the way, are those of an undisturbed run."""
    from ramen_jax.training import metrics

    def start(folder):
        command = [sys.executable, "-m", "tests.parallel.toy_process", str(folder), "checkpoint.every=5"]
        environment = {**os.environ, "TOY_SECONDS": "0.2", "XLA_FLAGS": ""}
        return subprocess.Popen(
            [sys.executable, LOCAL, "--", *command],
            cwd=repository,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    undisturbed, killed = start(tmp_path / "undisturbed"), start(tmp_path / "killed")
    deadline = time.monotonic() + 240
    while metrics.steps_in(tmp_path / "killed" / metrics.FILE) < 12:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    told, _ = killed.communicate(timeout=300)
    assert killed.returncode == 0, told
    assert "restart 1 of 10" in told
    assert "resuming from" in told
    undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0
    both = [
        [(line["step"], line["loss"]) for line in metrics.read(tmp_path / name)]
        for name in ("undisturbed", "killed")
    ]
    assert both[0] == both[1]


# -- clusters ----------------------------------------------------------------------------------------------------------


def stand_in(folder: Path, name: str, body: str) -> None:
    """A program that notes its arguments in {folder}/calls and does `body`."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls"\n{body}\n')
    path.chmod(0o755)


def scripted(repository, folder, script, **variables):
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["bash", script],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    calls = (folder / "calls").read_text() if (folder / "calls").exists() else ""
    return done, calls.splitlines()


@pytest.mark.parametrize(
    ("doctor", "train", "ends", "requeued"),
    [(0, 0, 0, False), (0, 143, 143, True), (0, 1, 1, False), (1, 0, 1, False)],
)
def test_slurm_requeues_what_was_stopped_and_nothing_else(
    repository, tmp_path, doctor, train, ends, requeued
):
    """(Mutants: a failed training is queued again for ever; an unhealthy cluster trains.)"""
    stand_in(tmp_path, "srun", f'case "$*" in *ramen_jax.doctor*) exit {doctor} ;; *) exit {train} ;; esac')
    stand_in(tmp_path, "scontrol", "")
    done, calls = scripted(repository, tmp_path, "launch/slurm.sbatch", WORKDIR="runs/a b", SLURM_JOB_ID="7")
    assert done.returncode == ends, done.stderr
    assert ("scontrol requeue 7" in calls) == requeued
    assert any("--workdir runs/a b --distributed" in call for call in calls)
    assert len([call for call in calls if "ramen_jax.train" in call]) == (0 if doctor else 1)
    done, _ = scripted(repository, tmp_path, "launch/slurm.sbatch", WORKDIR="")
    assert done.returncode == 1
    assert "set WORKDIR" in done.stderr


GCLOUD = """
count() { grep -c -- "$1" "{folder}/calls"; }
case "$*" in
  *describe*) if [ "$(count 'ramen_jax.train')" = 1 ] && [ "$(count ' create ')" = 1 ] && [ {first} != 1 ]
    then echo SUSPENDED; else echo ACTIVE; fi ;;
  *ramen_jax.train*) if [ "$(count 'ramen_jax.train')" = 1 ]; then exit {first}; fi ;;
esac
"""


@pytest.mark.parametrize(("first", "creates", "ends"), [(0, 1, 0), (255, 2, 0), (143, 2, 0), (1, 1, 1)])
def test_a_tpu_that_is_taken_away_is_asked_for_again(repository, tmp_path, first, creates, ends):
    """(Mutants: an error of the training asks for slices without end; the slice is left behind at the end.)"""
    if subprocess.run(["git", "rev-parse"], cwd=repository, capture_output=True, check=False).returncode:
        pytest.skip("needs a git checkout, which is what the hosts are sent")
    stand_in(tmp_path, "gcloud", GCLOUD.replace("{folder}", str(tmp_path)).replace("{first}", str(first)))
    variables = {"PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-16", "WORKDIR": "gs://b/run", "PAUSE": "0"}
    done, calls = scripted(repository, tmp_path, "launch/tpu_queued.sh", **variables)
    assert done.returncode == ends, done.stderr + done.stdout
    assert len([call for call in calls if "queued-resources create" in call]) == creates
    assert "queued-resources delete" in calls[-1]
    trained = [call for call in calls if "ramen_jax.train" in call]
    assert len(trained) == creates
    assert all("--workdir 'gs://b/run' --distributed" in call and "--worker all" in call for call in trained)
