"""One Protocol per seam. The docstrings are the contract; each port has a fake, a contract suite and an adapter."""
