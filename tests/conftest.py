"""Shared by all tests. Triton's kernels run in its interpreter, on the CPU: that is decided when Triton is imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
