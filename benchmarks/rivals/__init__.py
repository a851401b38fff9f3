"""Other frameworks doing the same rounds, each in an environment of its own. Never a dependency."""
