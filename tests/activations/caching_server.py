"""Imports once what a job needs, then forks one caching job for each line of JSON on standard input.

Answers on standard output: "ready", then the child's process id when it starts and its wait status when it ends. Also
runs as one process of several, with the job as its argument, started as `torchrun` would.
"""

import json
import os
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from conftest import TinyViT
from PIL import Image

from saetool import distributed
from saetool.activations import CacheSettings, cache
from saetool.errors import SaetoolError
from saetool.images import ImageSettings, open_source
from saetool.vision import wrap


def die_at(call: str, name: str) -> None:
    """Die by SIGKILL in `os.fsync` of a file of that name, half of it written, or before `os.rename` of it."""
    original = getattr(os, call)

    def dying(file, *rest):
        path = os.readlink(f"/proc/self/fd/{file}") if call == "fsync" else os.fspath(file)
        if fnmatch(path, name):
            if call == "fsync":
                os.truncate(path, os.stat(path).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(file, *rest)

    setattr(os, call, dying)


def run(job: dict) -> int:
    """Cache `job["pictures"]` into `job["out"]`; return the exit code."""
    torch.set_num_threads(1)
    if "die" in job:
        die_at(*job["die"])
    backbone = wrap(TinyViT(), [1, 3], "patches", name="tiny", image_size=16, blocks="blocks")
    source = open_source(ImageSettings(source=job["pictures"]))
    settings = CacheSettings(**job["settings"])
    try:
        cache(backbone, source, None, job["out"], settings, force=job.get("force", False))
    except SaetoolError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def main() -> None:
    """Serve until standard input ends."""
    import pandas  # noqa: F401  # pyarrow asks for it

    Image.init()
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            # os._exit: a forked child must not run what the server registered to run at its end.
            code = 70
            try:
                code = run(job)
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        distributed.start()
        sys.exit(run(json.loads(sys.argv[1])))
    main()
