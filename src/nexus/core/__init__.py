"""The nouns: what exists, which phases it passes through and how it fails. Standard library only, no I/O."""
