"""Composition roots: one module per process, and the only place that reads the environment and picks adapters."""
