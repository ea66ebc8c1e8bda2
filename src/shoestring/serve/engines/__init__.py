"""Engines behind the gateway, each with its capability record."""
