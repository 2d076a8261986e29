"""One file a step, named after its revision; each is final once released."""
