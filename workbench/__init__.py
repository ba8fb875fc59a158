"""Ablation and hyper-parameter studies for self-supervised audio."""
