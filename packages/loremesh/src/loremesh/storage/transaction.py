"""All or nothing, also when SQLite has already given up."""

from collections.abc import Iterator
from contextlib import contextmanager

import apsw


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """Commit what the block does, or undo all of it when it raises.

    Not apsw's own `with connection`: on a full disk SQLite undoes the transaction by itself, and apsw then fails with
    "cannot rollback" in place of the reason.
    """
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise
