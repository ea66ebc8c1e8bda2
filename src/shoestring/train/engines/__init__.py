"""TRL, Unsloth and Axolotl as trainers of a rung, each in an environment and process of its own."""
