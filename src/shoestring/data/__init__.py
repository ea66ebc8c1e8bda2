"""Load, curate and split a user's rows; every row that goes in comes out, kept or dropped with its reason."""
