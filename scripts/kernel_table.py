"""Registers, spills and shared memory of every Triton kernel of the sparse step, for GPUs that need not be here.

python scripts/kernel_table.py [--json FILE]        Triton's own cuobjdump says what each program takes.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = (80, 90, 100)
D, K = 768, 32
FLOAT, HALF, FINE, SHORT, LONG, BYTE = "*fp32", "*bf16", "*fp16", "*i16", "*i64", "*u8"
WHOLE, NUMBER = "i32", "fp32"

HOT = ("mark", "weighted_sums", "row_products", "adam_rows")
"""Where a step's time goes."""


def variants():
    """Yield (kernel, its use, argument types, constants, warps), as `launch` starts them at 768 → 24,576."""
    from saetool.sparse.backends.cuda import kernels, launch

    tile = {"ENTRIES": launch.ENTRIES, "COLUMNS": launch.COLUMNS}
    sums = [LONG, LONG, FLOAT]
    chunk = {"CHUNK": launch.CHUNK, "ENTRIES": launch.LATENT_ENTRIES, "COLUMNS": launch.COLUMNS}
    both = {**chunk, "CHUNKED": True}
    bits = {"BYTES": launch.BYTES}
    floor = [HALF, FLOAT, FLOAT, FLOAT, WHOLE, WHOLE, WHOLE, NUMBER]
    for half, use in ((HALF, "bfloat16"), (FINE, "float16")):
        yield kernels.mark, use, [half, FLOAT, FLOAT, BYTE, LONG, WHOLE, WHOLE, NUMBER], bits, 4
    for fine in (False, True):
        constants = {**bits, "PRECISION": launch.BITS, "FINE": fine}
        yield kernels.topk_floor, "large k" if fine else "", floor, constants, 4
    yield kernels.expand, "", [BYTE, LONG, LONG, LONG, SHORT, WHOLE], bits, 1
    values = [LONG, LONG, LONG, HALF, FLOAT, FLOAT, WHOLE, WHOLE, NUMBER]
    yield kernels.entry_values, "", values, {"BLOCK": 1024}, 4
    for width in (64, 128, launch.WIDEST):
        kept = [LONG, LONG, FLOAT, LONG, FLOAT, WHOLE]
        yield kernels.keep_largest, f"{width} a row", kept, {"WIDTH": width, "STEP": 16}, max(1, width // 64)
    yield kernels.chunk_sums, "bfloat16", [SHORT, *sums[1:], HALF, FLOAT, WHOLE, WHOLE], chunk, 1
    yield kernels.weighted_sums, "bfloat16", [*sums, HALF, FLOAT, FLOAT, WHOLE], both, 1
    yield kernels.weighted_sums, "float32", [*sums, FLOAT, FLOAT, FLOAT, WHOLE], {**both, "CHUNKED": False}, 1
    residuals = [LONG, LONG, FLOAT, HALF, FLOAT, FLOAT, HALF, FLOAT, WHOLE, WHOLE]
    yield kernels.residuals, "", residuals, tile, 1
    products = {**tile, "HAS_BIAS": False}
    yield kernels.row_products, "slopes", [LONG, LONG, HALF, HALF, FLOAT, FLOAT, WHOLE], products, 1
    exact = {**tile, "HAS_BIAS": True}
    yield kernels.row_products, "outputs", [LONG, LONG, FLOAT, FLOAT, FLOAT, FLOAT, WHOLE], exact, 4
    yield kernels.group_sums, "", [LONG, LONG, FLOAT, FLOAT], {"ENTRIES": 256}, 1
    center = [HALF, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, WHOLE, WHOLE]
    yield kernels.center, "", center, {"BLOCK": 1024, "HAS_MEAN": True}, 4
    yield kernels.round_rows, "float16", [FLOAT, FINE, FLOAT, FLOAT, WHOLE], {"COLUMNS": launch.COLUMNS}, 1
    adam = [*[FLOAT] * 4, HALF, *[FLOAT] * 3, WHOLE, WHOLE]
    for unit, scaled in itertools.product((False, True), repeat=2):
        constants = {"COLUMNS": 1024, "UNIT_ROWS": unit, "COPY": True, "SCALED": scaled}
        yield kernels.adam_rows, ("decoder" if unit else "encoder") + scaled * ", gains", adam, constants, 4


def compiled(kernel, types, constants, warps, architecture):
    """Return {"registers", "spilled", "shared"} of one kernel, bytes a thread and a program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = iter(types)
    signature = {name: "constexpr" if name in constants else next(names) for name in kernel.arg_names}
    # What a launch finds out by itself: addresses and sizes are multiples of 16.
    whole = [(i,) for i, t in enumerate(signature.values()) if t.startswith("*") or t == WHOLE]
    source = ASTSource(kernel, signature, constants, {key: [["tt.divisibility", 16]] for key in whole})
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        said = subprocess.run([dump, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    number = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", said)}
    return {"registers": number["REG"], "spilled": number["STACK"], "shared": number["SHARED"]}


def table():
    """Return a row a kernel and architecture."""
    return [
        {
            "kernel": kernel.__name__,
            "use": use,
            "warps": warps,
            "sm": architecture,
            **compiled(kernel, types, constants, warps, architecture),
        }
        for kernel, use, types, constants, warps in variants()
        for architecture in ARCHITECTURES
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    rows = table()
    print(f"{'kernel':<16}{'use':<14}{'warps':>6}{'sm':>5}{'registers':>11}{'spilled':>9}{'shared':>8}")
    for row in rows:
        print("{kernel:<16}{use:<14}{warps:>6}{sm:>5}{registers:>11}{spilled:>9}{shared:>8}".format(**row))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
