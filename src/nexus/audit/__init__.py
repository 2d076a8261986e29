"""The audit trail: who called which model for what, in an order that cannot be changed unseen. Never in the way of a call."""
