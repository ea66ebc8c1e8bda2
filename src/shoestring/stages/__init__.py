"""The work behind each line of recipe.py: wiring of the parts, no mathematics of its own.

Every stage function returns (JSON-ready result for the record, value for the next stage).
"""
