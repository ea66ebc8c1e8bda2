"""What a machine hour costs, and how we know."""
