"""Where the trials of a search are kept: a file of SQLite, or a PostgreSQL server."""

from __future__ import annotations

import logging
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from mlops_project.errors import InputError, ProjectError, file_failure
from mlops_project.printable import printable

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy import URL

log = logging.getLogger("mlops_project")
T = TypeVar("T")
GRACE_SECONDS = 60  # without a sign of life, after which a worker is taken for dead
RETRIES = 5  # of a trial whose worker has died; it may be the trial that kills the machine
# Kept with a queued trial: how many of its workers have died, and the trial that it goes on with.
DEATHS, AFTER = "deaths", "after"
OUTAGE_SECONDS = 300  # how long a database may be away before a search gives up
BUSY_SECONDS = 60  # how long SQLite waits for another process that writes


class Storage:
    """A database of trials, and a lock that all workers of a search share.

    Args:
        address: of SQLAlchemy: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.
        name: of the search, for which the lock is.
        grace: seconds without a sign of life after which a worker is taken for dead.

    Raises:
        InputError: no such kind of database, or no driver for it.
        ProjectError: the database does not answer.
    """

    def __init__(self, address: str, name: str, grace: int) -> None:
        self.url = parse(address)
        self.name, self.grace = name, grace
        self.beat_seconds = max(1, grace // 6)
        self.file = Path(self.url.database or "") if self._is_sqlite else None
        self._engine: Any = None

    @property
    def _is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def told(self) -> str:
        """The address without its password."""
        return self.url.render_as_string(hide_password=True)

    def open(self, use: Callable[[RDBStorage], T]) -> T:
        """Connects, makes the tables where there are none, and calls `use`, all under the lock."""
        import sqlalchemy
        from optuna.exceptions import StorageInternalError
        from optuna.storages import RDBStorage

        options: dict[str, Any] = {"pool_pre_ping": True}
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"timeout": BUSY_SECONDS}
        else:
            options["connect_args"] = {"connect_timeout": 10}
        try:
            if self.file is None:
                self._engine = sqlalchemy.create_engine(self.url, **options)
            with self.alone(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # heartbeats are experimental
                return use(
                    RDBStorage(
                        self.url.render_as_string(hide_password=False),
                        options,
                        heartbeat_interval=self.beat_seconds,
                        grace_period=self.grace,
                    )
                )
        except ImportError as error:
            raise InputError(
                f"--storage {self.told}: its driver is not installed; for PostgreSQL:\n"
                "uv run --extra postgresql src/mlops_project/search.py …"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            raise ProjectError(f"{self.told}: cannot be used: {_reason(error)}") from error
        except RuntimeError as error:  # tables of another version of Optuna
            raise InputError(f"{self.told}: {printable(str(error), 300)}") from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps the other workers of the search out."""
        if self.file is not None:
            with FileLock(self.file.with_name(f".{self.file.name}.lock")):
                yield
            return
        from sqlalchemy import text

        key = {"key": zlib.crc32(f"mlops_project {self.name}".encode())}
        # The server itself lets go of it when the connection ends, whatever ends it.
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)

    def patiently(self, work: Callable[[], T]) -> T:
        """Does some work, again and again while the database does not answer.

        Raises:
            ProjectError: it has been away for too long, or the disk is full.
        """
        import sqlalchemy
        from optuna.exceptions import StorageInternalError

        deadline = None
        while True:
            try:
                return work()
            except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
                reason = _reason(error)
                now = time.monotonic()
                if deadline is None:
                    deadline = now + OUTAGE_SECONDS
                    log.warning("%s: %s; trying again", self.told, reason)
                if now > deadline or "disk is full" in reason:
                    raise ProjectError(
                        f"{self.told}: {reason}\n"
                        "The trials so far are kept: the same command goes on with them."
                    ) from error
                time.sleep(1)
            except OSError as error:
                message = file_failure(error)
                if message is None:
                    raise
                raise ProjectError(message) from error


def queue_again(study: Study, trial: FrozenTrial) -> None:
    """Queues the parameters of a trial that nobody is at, for a worker to go on with it.

    It is given up where too many workers have died of it. (Optuna's own callback counts those that
    were interrupted, too, and loses the trial of a worker that dies between failing and queueing.)
    """
    from optuna.trial import TrialState, create_trial

    attributes = dict(trial.user_attrs)
    died = attributes.pop("error", None) is None
    deaths = trial.system_attrs.get(DEATHS, 0) + died
    if deaths > RETRIES:
        return
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs={DEATHS: deaths, AFTER: trial.number},
            intermediate_values=trial.intermediate_values,
        )
    )


def parse(address: str) -> URL:
    """An address as SQLAlchemy's; InputError where it is none that can be used."""
    import sqlalchemy

    example = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        url = sqlalchemy.make_url(address)
        backend = url.get_backend_name()
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        shown = printable(address.rpartition("@")[2])
        raise InputError(f"--storage {shown}: not an address like {example}") from error
    if backend == "postgres":  # as some hosts write it
        url = url.set(drivername=url.drivername.replace("postgres", "postgresql", 1))
        backend = "postgresql"
    if backend not in ("sqlite", "postgresql") or (backend == "sqlite" and not url.database):
        shown = printable(url.render_as_string(hide_password=True))
        raise InputError(f"--storage {shown}: must be {example}")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return url


def _reason(error: Exception) -> str:
    """What the driver says, in one line."""
    cause = error.__cause__ if error.__cause__ is not None else error
    text = str(getattr(cause, "orig", None) or cause)
    return printable(" ".join(text.split()), 300)
