"""Secrets of agents: sealed at rest, handed only to the instances they belong to, never shown again."""
