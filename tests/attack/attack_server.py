"""Imports everything once, then runs one `saetool` command in a forked process for each line of JSON it reads.

A job is {"argv", "cwd", "said"} and how it is attacked: {"die": n} kills it at the n-th point of durable calls (twice
the call's number before it, one more after it); {"count": true} writes the number of such points to `said` + ".points";
{"limit": bytes} lets no file grow larger. Answers: the child's process id when it starts, its wait status when it ends.
"""

import json
import os
import resource
import shutil
import signal
import sys
from importlib import import_module

import torch

from saetool import cli

for module in ("numba", "pyarrow.parquet", "sklearn.cluster", "sklearn.linear_model", "timm", "torch._dynamo"):
    import_module(module)
for module in ("evaluation.sections", "features.stage", "pipeline", "report.stage"):
    import_module(f"saetool.{module}")

DURABLE = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "truncate"), (shutil, "rmtree")]


class Points:
    """Counts the moments before and after every durable call; ends the process at one of them."""

    def __init__(self, die: int | None):
        self.passed, self.die = 0, die
        for module, name in DURABLE:
            self._wrap(module, name)

    def _wrap(self, module, name: str) -> None:
        original = getattr(module, name)

        def call(*args, **kwargs):
            self._pass()
            found = original(*args, **kwargs)
            self._pass()
            return found

        setattr(module, name, call)

    def _pass(self) -> None:
        if self.passed == self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1


def run(job: dict) -> int:
    """Run the command as a user's shell would; return the exit code."""
    torch.set_num_threads(1)
    os.chdir(job["cwd"])
    out = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if "as" in job:
        os.setgid(job["as"])
        os.setuid(job["as"])
    if "limit" in job:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    points = Points(job.get("die")) if "die" in job or "count" in job else None
    sys.argv = ["saetool", *job["argv"]]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if points and "count" in job:
        with open(job["said"] + ".points", "w") as file:
            file.write(str(points.passed))
    return code


def main() -> None:
    """Serve until standard input ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = run(job)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
