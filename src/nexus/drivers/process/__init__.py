"""The process driver: instances as processes of this machine.

`node` holds the instances a supervisor runs, `instance` is the life of one, `environments` builds what it needs, `launcher`
says what runs, `box_*` and `sandbox` close it in, `cgroups` limits it, `log_*` keep what it
prints, `api` and `client` are the two ends of the wire.
"""
