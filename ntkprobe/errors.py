"""The one exception for a user's mistake: a single clear line, exit status 2."""


class UserError(ValueError):
    """A mistake in the call: says what was wrong, what is allowed, and what to do, in one line."""
