"""The `nexus` command. `main` holds the table of commands, each loaded when it is used; `screen` is all they print with."""
