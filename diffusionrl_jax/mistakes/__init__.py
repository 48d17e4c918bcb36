"""What a person can mend, told apart from what is this project's own fault."""


class UserError(ValueError):
    """A mistake of the one who typed, wrote or named something: one line says it, and the mend.

    Programs show it without a traceback. Whatever else is raised is a fault of ours, and shows
    where it arose.
    """
