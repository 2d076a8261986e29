"""The smallest agent: a plain function. No import of ours is needed."""


def run(input):
    name = input if isinstance(input, str) and input.strip() else "world"
    return f"Hello, {name}!"
