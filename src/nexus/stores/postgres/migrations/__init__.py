"""Alembic scripts. Add one by copying the newest and raising its number; `migrate.upgrade` finds the head by itself."""
