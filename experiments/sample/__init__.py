"""How the bundled sample was made."""
