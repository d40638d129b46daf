"""What a user did wrong, in one line: command-line tools print it and exit with status 2, without a traceback."""


class UserError(Exception):
    """The cause is outside this library, and the message says what to change."""


class RecipeError(UserError):
    """A hyper-parameter that is unknown, of the wrong type, or impossible together with another."""


class DataError(UserError):
    """A data set that is missing, damaged, or in a layout that was not understood."""


class ModelError(UserError, ValueError):
    """Learners that were to start alike have models of different shape."""


class MachineError(UserError):
    """Something that the machines of this job lack, or in which they differ."""
