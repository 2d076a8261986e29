"""Adapters of the store ports. `postgres` holds everything; nothing above this row writes SQL."""
