"""Programs in JavaScript, Java, Go and Rust: a small client of ours around a store of theirs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from abc import abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.targets.foreign.base import Foreign, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_chaos import Marks

SOURCES = Path(__file__).with_name("sources")
_BUILD_S = 300
_ROW_LETTERS = 5000


class Client(Foreign):
    """A program that puts as many rows as its argument says; with 0 it prints what is there."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the program's command without its argument."""

    def setup(self, directory: Path) -> None:
        """Make an empty store, and compile the program before it is watched."""
        self.found(directory)

    def run(self, directory: Path, marks: Marks) -> None:
        """Become the program: it writes its own marks to the file that the environment names."""
        del marks
        command = [*self.command(), str(self.keys)]
        os.chdir(directory)
        os.execvp(command[0], command)

    def found(self, directory: Path) -> Iterable[int]:
        """Ask the program itself. Raises ValueError for what it cannot read."""
        done = subprocess.run([*self.command(), "0"], cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            message = f"{self.name} exits {done.returncode}: {done.stderr.strip()[-300:]}"
            raise ValueError(message)
        return whole(tuple(map(int, line.split())) for line in done.stdout.splitlines())


class NodeInPlace(Client):
    """Node's ``fs.writeFileSync``, the first thing that people write."""

    name = "node, writeFileSync"
    promise = "None: the file is replaced in place."
    source = "nodejs.org, fs.writeFileSync: 'replacing the file if it already exists'"
    commands = ("node",)
    script = "in_place.js"

    def command(self) -> list[str]:
        """Run the script."""
        return ["node", str(SOURCES / self.script)]

    def found(self, directory: Path) -> Iterable[int]:
        """Read the file."""
        path = directory / "rows.json"
        return whole((key, len(body)) for key, body in json.loads(path.read_text())) if path.exists() else []


class NodeAtomic(NodeInPlace):
    """npm's write-file-atomic, in the version that npm itself uses."""

    name = "node, write-file-atomic"
    promise = "The file has the old content or the new one; the temporary file is synced before it is renamed."
    source = "npmjs.com/package/write-file-atomic, option fsync (default true)"
    script = "write_file_atomic.js"

    def missing(self) -> str:
        """Look for the package among npm's own."""
        return super().missing() or ("" if _npm_modules() else "npm's package write-file-atomic")

    def command(self) -> list[str]:
        """Run the script where it finds npm's packages."""
        return ["env", f"NODE_PATH={_npm_modules()}", *super().command()]


class H2(Client):
    """H2, a database in Java, in its default mode."""

    name = "H2"
    promise = "ACID, except that a committed transaction may be lost for WRITE_DELAY (500 ms) after its commit."
    source = "h2database.com, 'Advanced', 'Durability Problems'; ALICE 2014 tried HSQLDB: 10 vulnerabilities in 2.3.2"
    commands = ("java", "javac")
    keys = 2

    def missing(self) -> str:
        """Look for the jar where Maven keeps it."""
        return super().missing() or (
            "" if _jars() else "H2's jar (mvn dependency:get -Dartifact=com.h2database:h2:2.3.232)"
        )

    def command(self) -> list[str]:
        """Compile it once, and run it without what differs between two starts."""
        jar = str(_jars()[-1])
        folder = built("Rows.java", ["javac", "-cp", jar, "-d", "."])
        return ["java", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto", "-cp", f"{jar}:{folder}", "Rows"]


class Bbolt(Client):
    """bbolt, the store of etcd, in Go."""

    name = "bbolt"
    promise = "ACID: a committed transaction is durable."
    source = "github.com/etcd-io/bbolt, README, 'Transactions', and DB.NoSync"
    commands = ("go",)
    packages = Path("/usr/share/gocode/src/go.etcd.io/bbolt")

    def missing(self) -> str:
        """Look for Debian's package of it."""
        return super().missing() or ("" if self.packages.is_dir() else "Debian's golang-github-coreos-bbolt-dev")

    def command(self) -> list[str]:
        """Compile it once."""
        environment = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "-p=1"}
        return [str(built("rows.go", ["go", "build", "-o", "rows"], environment) / "rows")]


class Tantivy(Store):
    """tantivy, a search engine in Rust, by its Python package: a document a commit."""

    name = "tantivy"
    promise = "After commit() all documents before it are persisted, also if the process is killed or power is lost."
    source = "docs.rs, tantivy::IndexWriter::commit"
    modules = ("tantivy",)
    keys = 2

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the index."""
        import tantivy

        fields = tantivy.SchemaBuilder()
        fields.add_integer_field("key", stored=True, indexed=True)
        fields.add_bytes_field("value", stored=True)
        (directory / "index").mkdir(exist_ok=True)
        yield tantivy.Index(fields.build(), path=str(directory / "index"))

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Add a document and commit."""
        import tantivy

        writer = store.writer(heap_size=15_000_000, num_threads=1)
        writer.add_document(tantivy.Document(key=key, value=value))
        writer.commit()
        writer.wait_merging_threads()

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read all documents."""
        store.reload()
        searcher = store.searcher()
        if not searcher.num_docs:
            return []
        import tantivy

        hits = searcher.search(tantivy.Query.all_query(), limit=100).hits
        documents = [searcher.doc(address) for _, address in hits]
        return [(each["key"][0], bytes(each["value"][0])) for each in documents]


def whole(rows: Iterable[tuple[int, ...]]) -> list[int]:
    """Return the keys of rows. Raises ValueError for a body of another length than was put."""
    found = list(rows)
    if torn := [key for key, letters in found if letters != _ROW_LETTERS]:
        message = f"the body of {torn} is not what was put"
        raise ValueError(message)
    return [key for key, _ in found]


def built(source: str, command: list[str], environment: dict[str, str] | None = None) -> Path:
    """Return the folder of a compiled source, which is compiled once for all processes."""
    content = (SOURCES / source).read_bytes()
    digest = hashlib.blake2b(content + repr(command).encode(), digest_size=6).hexdigest()
    folder = Path(tempfile.gettempdir(), f"pytest-chaos-built-{os.getuid()}", digest)
    if not folder.is_dir():
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            environment = {**os.environ, "GOCACHE": f"{made}.cache", **(environment or {})}
            subprocess.run(
                [*command, str(SOURCES / source)],
                cwd=made,
                env=environment,
                check=True,
                capture_output=True,
                timeout=_BUILD_S,
            )
            shutil.copytree(made, f"{made}.whole")
            with contextlib.suppress(OSError):  # another process was faster
                Path(f"{made}.whole").rename(folder)
            shutil.rmtree(f"{made}.cache", ignore_errors=True)
            shutil.rmtree(f"{made}.whole", ignore_errors=True)
    return folder


@functools.cache
def _npm_modules() -> str:
    npm = shutil.which("npm")
    folder = Path(npm).resolve().parents[1] / "node_modules" if npm else None
    return str(folder) if folder is not None and (folder / "write-file-atomic").is_dir() else ""


def _jars() -> list[Path]:
    return sorted(Path.home().glob(".m2/repository/com/h2database/h2/*/h2-*.jar"))
