"""One process of several that index a store, started as `torchrun` would: AUTOENCODER STORE OUT [RANK:NAME_OF_PART]."""

import os
import signal
import sys

import torch

from saetool import distributed
from saetool.errors import SaetoolError
from saetool.features import encoding, index


def main() -> int:
    """Index in small parts; with RANK:NAME_OF_PART that process dies as it finishes that part."""
    torch.set_num_threads(1)
    autoencoder, store, out, *death = sys.argv[1:]
    encoding.CHUNK_ROWS, encoding.PART_ROWS = 8, 8
    close = encoding.PartWriter.close

    def dying(writer, statistics):
        if death == [f"{distributed.rank()}:{writer.folder.name.removeprefix('part-')}"]:
            os.kill(os.getpid(), signal.SIGKILL)
        close(writer, statistics)

    encoding.PartWriter.close = dying
    distributed.start()
    try:
        index(autoencoder, store, out)
    except SaetoolError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
