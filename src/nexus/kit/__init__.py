"""Domain-free tools: nothing in here knows what an agent is."""
