"""How the text of a config string becomes typed options."""
