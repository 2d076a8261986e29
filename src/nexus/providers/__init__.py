"""Adapters to where models run. A vendor's library stays inside its adapter."""
