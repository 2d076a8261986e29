"""What authors import. Standard library and the rows below only, so it loads fast next to any framework."""
