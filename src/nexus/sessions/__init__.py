"""Sessions as their users see them: list, show, open, stop, kill, look inside."""
