"""Hosting: from a package to running instances, repaired for ever. `service` writes what is wanted, `planner` compares it
with what is, `executor` closes the difference, `loop` keeps going round."""
