"""Drills: long tests against a real host. Each prints one figure and its seed. `make drill NAME=kill-storm`."""
