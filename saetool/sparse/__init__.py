"""Sparse codes and the fast kernels behind the sparse models."""

from saetool.sparse.codes import Codes

__all__ = ["Codes"]
