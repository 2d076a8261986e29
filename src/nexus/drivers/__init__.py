"""Adapters of `ports.driver`: where instances run. What is a vendor's stays inside its adapter."""
