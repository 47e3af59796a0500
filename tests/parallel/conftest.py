"""Groups of real processes on this machine, joined by gloo."""

import pytest

from tests.parallel.nursery import Nursery, free_port


@pytest.fixture(scope="session")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def start(nursery, tmp_path):
    """start(*overrides, processes=2, each=[...], **environment) -> processes of a toy training in tmp_path / "run".

    `each`: further arguments of every process; `of_each`: further variables; `missing`: numbers that are not started.
    """
    started = []

    def begin(
        *arguments,
        processes=2,
        each=None,
        of_each=None,
        missing=(),
        devices=1,
        program="toy",
        workdir=tmp_path / "run",
        **environment,
    ):
        port, group = free_port(), []
        for number in sorted(set(range(processes)) - set(missing)):
            variables = {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
                **environment,
                **((of_each or {}).get(number, {})),
            }
            if processes > 1:
                variables |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(number),
                }
            mine = [*arguments, *(each[number] if each else ())]
            target = [str(workdir)] if program == "toy" else []
            log = tmp_path / f"{len(started)}.log"
            group.append(nursery.start(program, [*target, *mine], log, **variables))
            started.append(group[-1])
        return group

    yield begin
    for process in started:
        process.send_signal(9)
