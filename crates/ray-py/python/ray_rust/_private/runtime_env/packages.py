"""Folders and files as packages: named by their content, uploaded once to the control plane.

Of the keys in the control plane's namespace for them (`ray-gcs/src/packages.rs`, which removes them in the end)

* `part/<uri>/<number>` is a part of a package,
* `uri/<uri>` says how many parts it has; written after them,
* `job/<hex>/<uri>` notes that a job uses it; written before anything else.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from typing import IO, TYPE_CHECKING, Any, Optional, Protocol

from ray_rust._private.runtime_env.ignore import Patterns
from ray_rust.exceptions import RuntimeEnvSetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray_rust._internal import CoreWorker

NAMESPACE = b"runtime_env_packages"
PREFIX = "gcs://_ray_pkg_"
_PART_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20
# As in Ray.
_MAX_BYTES_VARIABLE = "RAY_max_grpc_message_size"
_DEFAULT_MAX_BYTES = 512 << 20
_IGNORE_FILES = (".gitignore", ".rayignore")
# As in Ray: what the working directory of a project mostly has and workers do not need.
_DEFAULT_EXCLUDES = ".git,.venv,venv,__pycache__"
# Files in packages are no older than a zip file can say, and equal folders make equal packages.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


class KeyValues(Protocol):
    """Keys and values of the control plane."""

    def get(self, namespace: bytes, key: bytes) -> Optional[bytes]:
        """The value, if there is one."""

    def put(self, namespace: bytes, key: bytes, value: bytes) -> None:
        """Sets a value."""


class Uploader:
    """Uploads what one job uses."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core

    def folder(self, folder: str, excludes: list[str], top_folder: str = "") -> str:
        """Uploads a folder, unless the control plane has it, and returns its URI.

        With `top_folder` the package holds a folder of that name with the content.
        """
        folder = os.path.abspath(folder)
        files = sorted(_files_of(folder, excludes))
        total, uri = _name(folder, files, top_folder)
        if self.note_use(uri):
            return uri
        if total > max_bytes() * 20:  # not worth packing to see
            raise _too_large(folder, total, files)
        import tempfile

        with tempfile.TemporaryFile() as file:
            _pack(folder, files, top_folder, file)
            size = file.tell()
            if size > max_bytes():
                raise _too_large(folder, size, files)
            self._upload(uri, file)
        return uri

    def file(self, path: str) -> str:
        """Uploads an archive as it is, unless the control plane has it, and returns its URI."""
        digest = hashlib.sha1(usedforsecurity=False)
        size = _hash_file(path, digest)
        name = os.path.basename(path)
        # The name of a wheel says what is in it, and is kept.
        rest = f"/{name}" if name.endswith(".whl") else _extension(name)
        uri = f"{PREFIX}{digest.hexdigest()}{rest}"
        if self.note_use(uri):
            return uri
        if size > max_bytes():
            raise _too_large(path, size, [])
        with open(path, "rb") as file:
            self._upload(uri, file)
        return uri

    def module_file(self, path: str) -> str:
        """Uploads a single Python file as a package that holds it."""
        import shutil
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(path, folder)
            return self.folder(folder, [])

    def note_use(self, uri: str) -> bool:
        """Keeps a package as long as this job needs it. Returns whether it is there."""
        self._put(f"job/{self._core.job_id.hex()}/{uri}", b"")
        key = f"uri/{uri}".encode()
        return key in self._core.kv_get(NAMESPACE, [key])

    def _upload(self, uri: str, file: IO[bytes]) -> None:
        file.seek(0)
        number = 0
        while True:
            part = file.read(_PART_BYTES)
            if not part:
                break
            self._put(f"part/{uri}/{number}", part)
            number += 1
        # Last, so that whoever sees it finds all parts.
        self._put(f"uri/{uri}", json.dumps({"parts": number}).encode())

    def _put(self, key: str, value: bytes) -> None:
        try:
            self._core.kv_put(NAMESPACE, key.encode(), value, True)
        except ConnectionError as error:
            raise RuntimeEnvSetupError(f"a package cannot be uploaded: {error}") from error


def default_excludes() -> list[str]:
    """Patterns that are left out of every working directory."""
    given = os.environ.get("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", _DEFAULT_EXCLUDES)
    return [pattern.strip() for pattern in given.split(",") if pattern.strip()]


def max_bytes() -> int:
    """How large a package may be."""
    return int(os.environ.get(_MAX_BYTES_VARIABLE, _DEFAULT_MAX_BYTES))


def download(kv: KeyValues, uri: str, target: str) -> None:
    """Writes an uploaded package to a file."""
    described = kv.get(NAMESPACE, f"uri/{uri}".encode())
    if described is None:
        raise RuntimeEnvSetupError(
            f"the package {uri} is not in the cluster (any more); it was uploaded to another cluster, or its job has "
            "ended"
        )
    parts = json.loads(described)["parts"]
    with open(target, "wb") as file:
        for number in range(parts):
            part = kv.get(NAMESPACE, f"part/{uri}/{number}".encode())
            if part is None:
                raise RuntimeEnvSetupError(f"part {number} of {parts} of the package {uri} is gone from the cluster")
            file.write(part)


# What a folder looked like when it was read last, and its name then.
_named: dict[tuple[str, str], tuple[list[tuple[Any, ...]], int, str]] = {}
_MAX_NAMED = 64


def _name(folder: str, files: list[str], top_folder: str) -> tuple[int, str]:
    """Size and URI of a folder. One whose files are as they were is not read again."""
    seen = []
    for path in files:
        status = os.stat(os.path.join(folder, path))
        seen.append((path, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino))
    known = _named.get((folder, top_folder))
    if known is not None and known[0] == seen:
        return known[1], known[2]
    digest = hashlib.sha1(top_folder.encode(), usedforsecurity=False)
    total = 0
    for path in files:
        digest.update(f"\0{path}\0".encode(errors="surrogateescape"))
        total += _hash_file(os.path.join(folder, path), digest)
    uri = f"{PREFIX}{digest.hexdigest()}.zip"
    if len(_named) >= _MAX_NAMED:
        _named.clear()
    _named[(folder, top_folder)] = (seen, total, uri)
    return total, uri


def _extension(name: str) -> str:
    for extension in (".tar.gz", ".tar.xz", ".tgz", ".zip"):
        if name.endswith(extension):
            return extension
    return os.path.splitext(name)[1]


def _hash_file(path: str, digest: hashlib._Hash) -> int:
    """Adds the kind and content of a file; returns its size."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        digest.update(b"folder")
        return 0
    digest.update(b"executable" if status.st_mode & stat.S_IXUSR else b"file")
    size = 0
    with open(path, "rb") as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            if not block:
                return size
            digest.update(block)
            size += len(block)


def _files_of(folder: str, excludes: list[str]) -> Iterator[str]:
    """Paths of all files, and of folders without any, that are not left out."""
    yield from _walk(folder, "", [("", Patterns(excludes))], ())


def _walk(root: str, folder: str, rules: list[tuple[str, Patterns]], above: tuple[str, ...]) -> Iterator[str]:
    here = os.path.join(root, folder)
    real = os.path.realpath(here)
    if real in above:  # a link that leads back
        return
    above = (*above, real)
    own = [pattern for name in _IGNORE_FILES for pattern in _lines_of(os.path.join(here, name))]
    if own:
        rules = [*rules, (folder, Patterns(own))]
    empty = True
    with os.scandir(here) as entries:
        found = list(entries)
    for entry in found:
        path = os.path.join(folder, entry.name) if folder else entry.name
        is_folder = entry.is_dir()
        if any(_excludes(patterns, base, path, is_folder=is_folder) for base, patterns in rules):
            continue
        empty = False
        if is_folder:
            yield from _walk(root, path, rules, above)
        elif entry.is_file():  # neither sockets nor pipes, nor links that lead nowhere
            yield path
    if empty and folder:
        yield folder


def _excludes(patterns: Patterns, base: str, path: str, *, is_folder: bool) -> bool:
    relative = path[len(base) + 1 :] if base else path
    return patterns.excludes(relative, is_folder=is_folder)


def _lines_of(path: str) -> list[str]:
    if os.path.basename(path) == ".gitignore" and os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1":
        return []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except OSError:
        return []


def _pack(folder: str, files: list[str], top_folder: str, target: IO[bytes]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in files:
            full = os.path.join(folder, path)
            mode = os.stat(full).st_mode
            is_folder = stat.S_ISDIR(mode)
            name = os.path.join(top_folder, path) + ("/" if is_folder else "")
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (mode & 0xFFFF) << 16
            if is_folder:
                archive.writestr(entry, b"")
                continue
            with open(full, "rb") as source, archive.open(entry, "w") as packed:
                while True:
                    block = source.read(_BLOCK_BYTES)
                    if not block:
                        break
                    packed.write(block)


def _too_large(what: str, size: int, files: list[str]) -> ValueError:
    mib = 1 << 20
    text = (
        f"the package of {what} has {size / mib:.1f} MiB, more than the {max_bytes() / mib:.1f} MiB that a package may "
        "have. Leave out what workers do not need by runtime_env['excludes'], .rayignore or .gitignore, or give the "
        "URI of an archive"
    )
    sizes = sorted(((_size_of(os.path.join(what, path)), path) for path in files), reverse=True)[:5]
    if sizes:
        text += "; the largest files: " + ", ".join(f"{path} ({size / mib:.1f} MiB)" for size, path in sizes)
    return ValueError(text)


def _size_of(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
