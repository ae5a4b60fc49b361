"""Autoencoders of other tools: read into sealed artifacts of saetool's own, and written for others to open.

A format is one module with a table of conversions; all meet in `plain.Plain`, and what that cannot hold is refused.
"""
