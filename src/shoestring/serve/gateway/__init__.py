"""An OpenAI-compatible server: the contract with clients, over whichever engine answers."""
