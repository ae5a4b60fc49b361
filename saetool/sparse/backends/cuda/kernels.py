"""The Triton kernels of the sparse step; `launch` calls them. Every sum has a fixed order: no atomics.

What makes them fast (measured on an H200): one warp a program where entries are summed, so that a sum over entries
stays inside a thread; selection by bits, eight neighboring latents to a byte, so that placing what was found needs one
short prefix sum a row and no sum across threads; and no program that has much more to do than the others: the entries
of a latent that fires often are summed in chunks by other programs first.

Capitals are addresses, a name in capitals with a type beside it is known at compile time. Rows and offsets are int64.
"""

# What Triton makes of these lines no type checker knows.
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
import triton
import triton.language as tl


@triton.jit
def _ones(byte):
    """Return how many bits of a byte are set."""
    pairs = byte - ((byte >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (fours + (fours >> 4)) & 0x0F


@triton.jit
def _outputs(PRE, OFFSET, row, start, n_latents, rounding, BYTES: tl.constexpr):
    """Return (latents, inside, outputs) of 8 · BYTES neighboring latents of a row, as [BYTES, 8].

    An output is pre + rounding · |pre| + offset: with a rounding of 2⁻¹¹ a bound from above of what `pre` was before it
    was rounded to float16, with −2⁻¹¹ one from below.
    """
    latents = (start + tl.arange(0, BYTES)[:, None]) * 8 + tl.arange(0, 8)[None, :]
    inside = latents < n_latents
    pre = tl.load(PRE + row * n_latents + latents, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    offset = tl.load(OFFSET + latents, mask=inside, other=0.0, eviction_policy="evict_last")
    return latents, inside, pre + rounding * tl.abs(pre) + offset


@triton.jit(do_not_specialize=["n_bytes"])
def mark(PRE, OFFSET, FLOOR, BITS, COUNTS, n_latents, n_bytes, rounding, BYTES: tl.constexpr):
    """Mark which outputs of a row exceed its floor, one bit a latent, and count them. A NaN exceeds nothing.

    PRE [rows, n_latents] in 16 bits, OFFSET [n_latents] and FLOOR [rows] float32; BITS [rows, n_bytes], COUNTS [rows].
    """
    row = tl.program_id(0).to(tl.int64)
    byte = tl.arange(0, BYTES)
    floor = tl.load(FLOOR + row)
    count = tl.zeros([BYTES], tl.int32)
    for start in range(0, n_bytes, BYTES):
        _, inside, outputs = _outputs(PRE, OFFSET, row, start, n_latents, rounding, BYTES)
        on = ((outputs > floor) & inside).to(tl.int32)
        bits = tl.sum(on << tl.arange(0, 8)[None, :], 1)
        tl.store(BITS + row * n_bytes + start + byte, bits.to(tl.uint8), mask=start + byte < n_bytes)
        count += _ones(bits)
    tl.store(COUNTS + row, tl.sum(count, 0).to(tl.int64))


@triton.jit(do_not_specialize=["n_bytes", "k"])
def topk_floor(
    PRE, BIAS, MARGIN, FLOOR, n_latents, n_bytes, k, rounding,
    BYTES: tl.constexpr, PRECISION: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    """Write a floor that each of a row's k largest positive outputs exceeds: just below the k-th largest of the maxima
    of BYTES groups of latents, less twice the margin; at least −margin, as only positive outputs count.

    FINE: eight times as many groups, for a k that is not small beside BYTES. `rounding` is that of bounds from below.
    The k-th largest is found by bisection, on the first PRECISION bits.
    """
    row = tl.program_id(0).to(tl.int64)
    top = tl.zeros([BYTES, 8] if FINE else [BYTES], tl.float32)
    for start in range(0, n_bytes, BYTES):
        _, inside, outputs = _outputs(PRE, BIAS, row, start, n_latents, rounding, BYTES)
        outputs = tl.where(inside & (outputs > 0), outputs, 0.0)
        top = tl.maximum(top, outputs if FINE else tl.max(outputs, 1))
    bits = top.to(tl.int32, bitcast=True)  # of numbers that are not negative: ordered as these are
    found = 0
    for place in tl.static_range(PRECISION):
        trial = found | (1 << (30 - place))
        reached = (bits >= trial).to(tl.int32)
        reached = tl.sum(reached, 1) if FINE else reached
        found = tl.where(tl.sum(reached, 0) >= k, trial, found)
    below = (tl.maximum(found, 1) - 1).to(tl.float32, bitcast=True)
    margin = tl.load(MARGIN + row)
    tl.store(FLOOR + row, tl.maximum(below - 2 * margin, -margin))


@triton.jit(do_not_specialize=["n_bytes"])
def expand(BITS, OFFSETS, ROWS, LATENTS, KEYS, n_bytes, BYTES: tl.constexpr):
    """Write the row and the latent of every marked entry, latents ascending, from the row's offset on.

    KEYS: the latent once more, as narrow as sorting wants it. Nothing is loaded inside the loop: it would wait for
    memory at every turn. See `entry_values`.
    """
    row = tl.program_id(0).to(tl.int64)
    byte = tl.arange(0, BYTES)
    end = tl.load(OFFSETS + row)
    for start in range(0, n_bytes, BYTES):
        bits = tl.load(BITS + row * n_bytes + start + byte, mask=start + byte < n_bytes, other=0).to(tl.int32)
        count = _ones(bits)
        place = end + tl.cumsum(count, 0) - count
        end += tl.sum(count, 0)
        while tl.max(bits, 0) > 0:
            on = bits > 0
            lowest = bits & -bits
            latent = (start + byte) * 8 + _ones(lowest - 1)
            tl.store(ROWS + place, tl.zeros([BYTES], tl.int64) + row, mask=on)
            tl.store(LATENTS + place, latent.to(tl.int64), mask=on)
            tl.store(KEYS + place, latent.to(KEYS.dtype.element_ty), mask=on)
            bits = bits ^ lowest
            place += 1


@triton.jit(do_not_specialize=["room"])
def entry_values(ROWS, LATENTS, END, PRE, BIAS, VALUES, room, n_latents, missing, BLOCK: tl.constexpr):
    """Write pre + bias of every entry, and from END, their number, on `missing`."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < tl.load(END)
    row, latent = tl.load(ROWS + entry, mask=inside, other=0), tl.load(LATENTS + entry, mask=inside, other=0)
    pre = tl.load(PRE + row * n_latents + latent, mask=inside, other=0.0).to(tl.float32)
    value = pre + tl.load(BIAS + latent, mask=inside, other=0.0)
    tl.store(VALUES + entry, tl.where(inside, value, missing), mask=entry < room)


@triton.jit(do_not_specialize=["k"])
def keep_largest(OFFSETS, LATENTS, VALUES, KEPT_LATENTS, KEPT_VALUES, k, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """Write each row's k largest positive entries, latents ascending; of equals the lowest latents.

    A row has at most WIDTH entries. KEPT_LATENTS and KEPT_VALUES [rows, k] are zeros before.
    """
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(OFFSETS + row), tl.load(OFFSETS + row + 1)
    place = first + tl.arange(0, WIDTH)
    value = tl.load(VALUES + place, mask=place < last, other=-1.0)
    before = tl.zeros([WIDTH], tl.int32)
    for start in range(first, last, STEP):
        other_place = start + tl.arange(0, STEP)
        other = tl.load(VALUES + other_place, mask=other_place < last, other=-1.0)
        equal = (other[:, None] == value[None, :]) & (other_place[:, None] < place[None, :])
        before += tl.sum(((other[:, None] > value[None, :]) | equal).to(tl.int32), 0)
    kept = ((value > 0) & (before < k)).to(tl.int32)
    to = row * k + tl.cumsum(kept, 0) - 1
    tl.store(KEPT_LATENTS + to, tl.load(LATENTS + place, mask=place < last, other=0), mask=kept > 0)
    tl.store(KEPT_VALUES + to, value, mask=kept > 0)


@triton.jit
def _add_rows(total, first, last, INDEX, WEIGHTS, TABLE, columns, d, ENTRIES: tl.constexpr):
    """Add weights[e] · table[index[e]] for the entries from `first` to `last`, to some columns."""
    inside = (columns < d)[None, :]
    for start in range(first, last, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        on = place < last
        index = tl.load(INDEX + place, mask=on, other=0)
        weight = tl.load(WEIGHTS + place, mask=on, other=0.0)
        rows = tl.load(TABLE + index[:, None] * d + columns[None, :], mask=on[:, None] & inside, other=0.0)
        total += tl.sum(rows.to(tl.float32) * weight[:, None], 0)
    return total


@triton.jit
def chunk_sums(
    GROUP, INDEX, WEIGHTS, TABLE, CHUNKS, end, d,
    CHUNK: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write Σ weights[e] · table[index[e]] over each whole chunk of entries that belongs to one group; others stay.

    GROUP [entries] ascends; from `end` on it is only room. CHUNKS [whole chunks, d] float32.
    """
    chunk = tl.program_id(0).to(tl.int64)
    first, last = chunk * CHUNK, (chunk + 1) * CHUNK
    group = tl.load(GROUP + first).to(tl.int32)
    if (group == tl.load(GROUP + last - 1).to(tl.int32)) & (group < end):
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        total = _add_rows(tl.zeros([COLUMNS], tl.float32), first, last, INDEX, WEIGHTS, TABLE, columns, d, ENTRIES)
        tl.store(CHUNKS + chunk * d + columns, total, mask=columns < d)


@triton.jit
def weighted_sums(
    OFFSETS, INDEX, WEIGHTS, TABLE, CHUNKS, OUT, d,
    CHUNK: tl.constexpr, CHUNKED: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write Σ weights[e] · table[index[e]] over each group's entries.

    CHUNKED: whole chunks inside a group are taken from CHUNKS, see `chunk_sums`. TABLE is float32 or bfloat16, OUT
    float32.
    """
    group = tl.program_id(0).to(tl.int64)
    first, last = tl.load(OFFSETS + group), tl.load(OFFSETS + group + 1)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    if CHUNKED:
        first_chunk, end_chunk = (first + CHUNK - 1) // CHUNK, last // CHUNK
        for chunk in range(first_chunk, end_chunk):
            total += tl.load(CHUNKS + chunk * d + columns, mask=columns < d, other=0.0)
        whole = end_chunk > first_chunk
        tail = tl.where(whole, end_chunk * CHUNK, last)
        total = _add_rows(total, tail, last, INDEX, WEIGHTS, TABLE, columns, d, ENTRIES)
        last = tl.where(whole, first_chunk * CHUNK, last)
    total = _add_rows(total, first, last, INDEX, WEIGHTS, TABLE, columns, d, ENTRIES)
    tl.store(OUT + group * d + columns, total, mask=columns < d)


@triton.jit
def residuals(
    OFFSETS, LATENTS, VALUES, WEIGHT, X, BIAS, RESIDUAL, SQUARES, n_rows, d,
    ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write r = x − bias − Σ values[e] · weight[latents[e]], and for each block of columns the sum of its squares."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    first, last = tl.load(OFFSETS + row), tl.load(OFFSETS + row + 1)
    total = _add_rows(tl.zeros([COLUMNS], tl.float32), first, last, LATENTS, VALUES, WEIGHT, columns, d, ENTRIES)
    x = tl.load(X + row * d + columns, mask=inside, other=0.0)
    rest = x - tl.load(BIAS + columns, mask=inside, other=0.0) - total
    tl.store(RESIDUAL + row * d + columns, rest.to(RESIDUAL.dtype.element_ty), mask=inside)
    tl.store(SQUARES + tl.program_id(1) * n_rows + row, tl.sum(rest * rest, 0))


@triton.jit
def row_products(
    OFFSETS, LATENTS, WEIGHT, TABLE, BIAS, OUT, d,
    ENTRIES: tl.constexpr, COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Write weight[latents[e]] · table[row] for every entry of each row, plus the latent's bias where there is one."""
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(OFFSETS + row), tl.load(OFFSETS + row + 1)
    column = tl.arange(0, COLUMNS)
    for start in range(first, last, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        on = place < last
        latent = tl.load(LATENTS + place, mask=on, other=0)
        total = tl.zeros([ENTRIES, COLUMNS], tl.float32)
        for left in range(0, d, COLUMNS):
            columns = left + column
            inside = columns < d
            right = tl.load(TABLE + row * d + columns, mask=inside, other=0.0).to(tl.float32)
            at = WEIGHT + latent[:, None] * d + columns[None, :]
            total += tl.load(at, mask=on[:, None] & inside[None, :], other=0.0).to(tl.float32) * right[None, :]
        product = tl.sum(total, 1)
        if HAS_BIAS:
            product += tl.load(BIAS + latent, mask=on, other=0.0)
        tl.store(OUT + place, product, mask=on)


@triton.jit
def group_sums(OFFSETS, ORDER, VALUES, OUT, ENTRIES: tl.constexpr):
    """Write the sum of values[order[e]] over each group's entries."""
    group = tl.program_id(0).to(tl.int64)
    first, last = tl.load(OFFSETS + group), tl.load(OFFSETS + group + 1)
    total = tl.zeros([ENTRIES], tl.float32)
    for start in range(first, last, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        order = tl.load(ORDER + place, mask=place < last, other=0)
        total += tl.load(VALUES + order, mask=place < last, other=0.0)
    tl.store(OUT + group, tl.sum(total, 0))


@triton.jit
def center(X, MEAN, FACTOR, BIAS, UNITS, CENTERED, size, d, BLOCK: tl.constexpr, HAS_MEAN: tl.constexpr):
    """Write x' = (x − mean) · factor, or x itself without a mean, and x' − bias."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, column = place < size, place % d
    units = tl.load(X + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_MEAN:
        units = (units - tl.load(MEAN + column, mask=inside, other=0.0)) * tl.load(FACTOR)
    tl.store(UNITS + place, units, mask=inside)
    tl.store(CENTERED + place, units - tl.load(BIAS + column, mask=inside, other=0.0), mask=inside)


@triton.jit
def _half(x, HALF):
    """Return numbers as HALF holds them; what float16 has no room for becomes its largest number, NaN stays."""
    if HALF.dtype.element_ty == tl.float16:
        x = tl.where(x > 65504.0, 65504.0, tl.where(x < -65504.0, -65504.0, x))
    return x.to(HALF.dtype.element_ty)


@triton.jit
def round_rows(X, HALF, NORMS, ERRORS, d, COLUMNS: tl.constexpr):
    """Write rows in bfloat16 or float16, the norm of each rounded row, and that of what rounding changed."""
    row = tl.program_id(0).to(tl.int64)
    square, error = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for left in range(0, d, COLUMNS):
        columns = left + tl.arange(0, COLUMNS)
        x = tl.load(X + row * d + columns, mask=columns < d, other=0.0)
        half = _half(x, HALF)
        tl.store(HALF + row * d + columns, half, mask=columns < d)
        square += half.to(tl.float32) * half.to(tl.float32)
        error += (x - half.to(tl.float32)) * (x - half.to(tl.float32))
    tl.store(NORMS + row, tl.sqrt(tl.sum(square, 0)))
    tl.store(ERRORS + row, tl.sqrt(tl.sum(error, 0)))


@triton.jit
def adam_rows(
    WEIGHT, GRAD, MOMENT, SQUARE, HALF, NUMBERS, BEFORE, AFTER, size, d,
    COLUMNS: tl.constexpr, UNIT_ROWS: tl.constexpr, COPY: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Take Adam's step for each row of a weight. NUMBERS: lr / (1 − β₁ᵗ), β₁, β₂, √(1 − β₂ᵗ), ε.

    UNIT_ROWS: rows end at norm 1, and unless they are SCALED the gradient's part along the row is left out. SCALED:
    BEFORE and AFTER are `plain.Scales`. COPY: the row is written in HALF too, bfloat16 or float16.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    at = row * d + column
    inside = (column < d) & (at < size)
    step_size, beta1, beta2 = tl.load(NUMBERS), tl.load(NUMBERS + 1), tl.load(NUMBERS + 2)
    correction, eps = tl.load(NUMBERS + 3), tl.load(NUMBERS + 4)
    weight, grad = tl.load(WEIGHT + at, mask=inside, other=0.0), tl.load(GRAD + at, mask=inside, other=0.0)
    moment, square = tl.load(MOMENT + at, mask=inside, other=0.0), tl.load(SQUARE + at, mask=inside, other=0.0)
    if SCALED:
        before = tl.load(BEFORE + row)
        weight, grad = weight / before, grad * before
    elif UNIT_ROWS:
        grad -= weight * tl.sum(weight * grad, 0)
    moment += (1 - beta1) * (grad - moment)
    square = beta2 * square + (1 - beta2) * grad * grad
    weight -= step_size * moment / (tl.sqrt(square) / correction + eps)
    if UNIT_ROWS:
        norm = tl.maximum(tl.sqrt(tl.sum(weight * weight, 0)), 1.2e-38)
        weight /= norm
        if SCALED:
            tl.store(AFTER + row, norm)
    elif SCALED:
        weight *= tl.load(AFTER + row)
    tl.store(WEIGHT + at, weight, mask=inside)
    tl.store(MOMENT + at, moment, mask=inside)
    tl.store(SQUARE + at, square, mask=inside)
    if COPY:
        tl.store(HALF + at, _half(weight, HALF), mask=inside)
