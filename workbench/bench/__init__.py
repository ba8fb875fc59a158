"""Benchmarks: each prints its figure beside that of a plain rival, from the same run."""
