"""Figures and estimates, from `workbench.study.results`' table only."""
