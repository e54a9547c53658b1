"""The error of a config that cannot be used."""


class ConfigError(ValueError):
    """A config cannot be used; the message names the file and the key, and says what is needed."""
