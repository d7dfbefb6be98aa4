"""A job script for SLURM: an array of which each task does one part of a batch, and asks to go on when time is up."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mupd_wsi.errors import UsageError

#: SLURM's own forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
TIME: Final = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
#: Seconds before the time limit at which a task is told to stop.
NOTICE_S: Final = 120

_SCRIPT: Final = """\
#!/bin/bash
#SBATCH --job-name=mupd-wsi
#SBATCH --array=1-{array}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --mem={mem}
#SBATCH --time={time}
#SBATCH --output=mupd-wsi-%A_%a.txt
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{notice}

# {array} tasks share the slides. Submit this file with sbatch, and see what became of every slide, at any time, with
#     {status}
# Submit it again for slides that failed; what is done is not done twice.

set -u

# Fill in what gives this cluster's nodes the command mupd-wsi, for instance:
# module load python/3.11
# source /path/to/venv/bin/activate

# Idle OpenMP threads must not take the cores of those that work.
export OMP_WAIT_POLICY=PASSIVE

{command} \\
    --shard "${{SLURM_ARRAY_TASK_ID}}/{array}" &
work=$!

# SLURM sends USR1 {notice} s before the time limit, and TERM when the task is cancelled or preempted.
signal=""
trap 'signal=USR1; kill -TERM "$work"' USR1
trap 'signal=TERM; kill -TERM "$work"' TERM
code=0
while kill -0 "$work" 2>/dev/null; do
    wait "$work"
    code=$?
done

# Put together what all tasks have done so far; the last one leaves the whole summary.
{status} >/dev/null

if [ "$signal" = USR1 ]; then
    echo "out of time: the task goes on when it is its turn again"
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


@dataclass(frozen=True, slots=True)
class ArrayJob:
    """What a job array asks the cluster for.

    Attributes:
        array: number of tasks.
        gpus: of one task; with several, one process each.
        cpus: of one task.
        time: limit of one task, as SLURM writes it.
        mem: memory of one task, as SLURM writes it.

    Raises:
        UsageError: a number or a time that SLURM does not know.
    """

    array: int
    gpus: int = 0
    cpus: int = 4
    time: str = "4:00:00"
    mem: str = "16G"

    def __post_init__(self) -> None:
        if self.array < 1 or self.gpus < 0 or self.cpus < 1:
            raise UsageError(f"a job array needs tasks and cores, got array {self.array}, cpus {self.cpus}")
        if not TIME.fullmatch(self.time):
            raise UsageError(f"time {self.time!r} is not one of SLURM's, such as 4:00:00 or 2-12:00:00")
        if not re.fullmatch(r"\d+[KMGT]?", self.mem):
            raise UsageError(f"memory {self.mem!r} is not one of SLURM's, such as 16G")


def array_script(job: ArrayJob, arguments: Sequence[str], folder: str) -> str:
    """The script, ready for ``sbatch``.

    Args:
        job: what to ask for.
        arguments: of ``mupd-wsi batch``, without ``--shard`` and devices.
        folder: of the batch.
    """
    devices = ["--devices", ",".join(f"cuda:{n}" for n in range(job.gpus))] if job.gpus > 1 else []
    command = shlex.join(["mupd-wsi", "batch", *arguments, *devices])
    return _SCRIPT.format(
        array=job.array,
        cpus=job.cpus,
        gpus=f"#SBATCH --gpus={job.gpus}\n" if job.gpus else "",
        mem=job.mem,
        time=job.time,
        notice=NOTICE_S,
        command=command,
        status=shlex.join(["mupd-wsi", "status", folder]),
    )
