"""Fine-tuning as a vendor's job: Together, Fireworks, and what speaks OpenAI's fine-tuning API, by their own SDKs."""
