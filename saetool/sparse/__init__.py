"""Sparse codes and the sparse training step: `codes`, `ops` (differentiable), `adam`; `backends` do the work."""

from saetool.sparse.codes import Codes

__all__ = ["Codes"]
