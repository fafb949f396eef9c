"""Ordinary programs are left alone: the standard library, SQLAlchemy, Django, diskcache, the CLI.

Their sessions, pools, migrations, threads and processes, as their own documents show them.
"""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.sqlite.watching import watched

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = ("delete", "wal", "truncate", "persist", "memory")
WRITER = """
import sqlite3
c = sqlite3.connect("p.db", timeout=60, isolation_level=None)
for number in range(5):
    c.execute("BEGIN IMMEDIATE")
    c.execute("INSERT INTO kept VALUES (?)", (number,))
    c.execute("COMMIT")
    c.execute("SELECT count(*) FROM kept").fetchone()
c.close()
"""
SQLALCHEMY = """
import threading
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
class Base(DeclarativeBase): pass
class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
engine = sa.create_engine("sqlite:///sa.db", connect_args={"timeout": 60})
@sa.event.listens_for(engine, "connect")
def pragma(connection, _): connection.execute("PRAGMA journal_mode=WAL")
Base.metadata.create_all(engine)
sessions = sessionmaker(engine)
def work(n):
    for i in range(3):
        with sessions.begin() as session:
            session.add(User(id=n * 100 + i, name=str(i)))
        with sessions() as session:
            session.scalars(sa.select(User)).all()
threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
engine.dispose()
"""
DJANGO = """
import os, pathlib, sys
os.makedirs("app/migrations")
for name in ("app/__init__.py", "app/migrations/__init__.py"): open(name, "w").close()
pathlib.Path("app/models.py").write_text(
    "from django.db import models\\nclass Item(models.Model):\\n    name = models.CharField(max_length=9, unique=True)")
sys.path.insert(0, os.getcwd())
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "app"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.path.abspath("dj.db")}},
    SECRET_KEY="x", DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
django.setup()
from django.core.management import call_command
call_command("makemigrations", "app", verbosity=0)
call_command("migrate", verbosity=0)
from app.models import Item
from django.db import connections, transaction
for number in range(5):
    with transaction.atomic():
        Item.objects.get_or_create(name=str(number))
    Item.objects.filter(name=str(number)).update(name=f"{number}!")
from django.contrib.sessions.backends.db import SessionStore
session = SessionStore(); session["a"] = 1; session.save()
assert Item.objects.count() == 5
call_command("dumpdata", "app", output="dump.json", verbosity=0)
connections.close_all()
"""
DISKCACHE = """
import subprocess, sys, diskcache
with diskcache.Cache("cache") as cache:
    for number in range(20):
        cache[number] = "x" * (number * 1000)
        cache.get(number)
    cache.expire(); cache.check()
with diskcache.FanoutCache("fan", shards=2) as cache:
    for number in range(10):
        cache.set(number, number); cache.incr("n")
queue = diskcache.Deque(directory="queue")
queue.append(1); queue.popleft()
code = "import diskcache; c = diskcache.Cache('cache'); [c.incr('n') for _ in range(10)]; c.close()"
children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
assert [child.wait() for child in children] == [0, 0]
"""


def standard_library() -> None:
    """Threads, backups and vacuums, in each journal mode."""
    for mode in MODES:
        path = f"{mode}.db"
        connection = sqlite3.connect(path, timeout=60)
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE kept (value)")

        def work(place: str = path) -> None:
            own = sqlite3.connect(place, timeout=60)
            for number in range(3):
                with own:
                    own.execute("INSERT INTO kept VALUES (?)", (number,))
            own.close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        copy = sqlite3.connect(f"copy-{mode}.db")
        connection.backup(copy)
        copy.close()
        connection.execute(f"VACUUM INTO 'into-{mode}.db'")
        connection.execute("VACUUM")
        connection.close()


def processes() -> None:
    """Three writers, then the command line of SQLite, where it is installed."""
    connection = sqlite3.connect("p.db")
    connection.execute("PRAGMA journal_mode=wal")
    connection.execute("CREATE TABLE kept (value)")
    connection.close()
    children = [subprocess.Popen([sys.executable, "-c", WRITER]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    if shutil.which("sqlite3"):
        for command in ("SELECT count(*) FROM kept; VACUUM; PRAGMA journal_mode=delete;", ".backup b.db", ".dump"):
            subprocess.run(["sqlite3", "p.db", command], check=True, stdout=subprocess.DEVNULL)


def script(text: str) -> Callable[[], None]:
    """Return a program that runs a script in an interpreter of its own."""

    def run() -> None:
        Path("program.py").write_text(text)
        subprocess.run([sys.executable, "program.py"], check=True)

    return run


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("program", "needs"),
    [
        (standard_library, "sqlite3"),
        (processes, "sqlite3"),
        (script(SQLALCHEMY), "sqlalchemy"),
        (script(DJANGO), "django"),
        (script(DISKCACHE), "diskcache"),
    ],
    ids=["standard-library", "processes", "sqlalchemy", "django", "diskcache"],
)
def test_an_ordinary_program_is_left_alone(program: Callable[[], None], needs: str, tmp_path: Path) -> None:
    """Nothing is found, and its databases were seen."""
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed: pip install -e '.[targets]'")
    judged = watched(program, tmp_path)
    assert judged.findings == ()
    assert judged.databases
