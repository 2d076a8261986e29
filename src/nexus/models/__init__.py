"""The models room: which model names there are and where they lead, and fetching the weights of local ones."""
