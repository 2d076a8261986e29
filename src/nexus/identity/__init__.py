"""Who is calling: tenants, API keys, the dispatcher's service token and the tokens of instances."""
