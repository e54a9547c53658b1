"""The errors of a config, and of files and settings in general, that a user can mend."""


class InputError(ValueError):
    """Something that was given cannot be used; the message names it, what is wrong with it, and what to do."""


class ConfigError(InputError):
    """A config cannot be used; the message names the file and the key, and says what is needed."""
