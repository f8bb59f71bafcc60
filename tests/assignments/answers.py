"""Where the answers in this folder are collected: right ones of three styles, and wrong ones with what must be said."""

RIGHT: dict[str, list] = {}  # by question, "a1.center"
WRONG: dict[
    str, tuple
] = {}  # by "a1.center: the mean itself": the function, then pieces of the message that it must get


def right(question, *functions):
    """Collect right answers."""
    RIGHT.setdefault(question, []).extend(functions)


def wrong(question, table):
    """Collect wrong answers: by name, the function, and pieces of its message, the place first, then the mistake."""
    WRONG.update({f"{question}: {name}": answer for name, answer in table.items()})
