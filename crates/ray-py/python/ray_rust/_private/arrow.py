"""How Arrow data is pickled.

Arrow pickles a part of a table together with all of the buffers that the part lies in: ten rows may come to
gigabytes. Such parts are copied into Arrow's own stream format instead, which has only what is needed.
All else is pickled as it is, without a copy. Both are read where they lie.
"""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from collections.abc import Iterator

# So much more than is needed may travel along, in bytes; copying has its price too.
_SLACK_BYTES = 64 * 1024


def reducers() -> dict[type, Callable[[Any], Any]]:
    """By class, if Arrow is imported to its end."""
    pyarrow: Any = sys.modules.get("pyarrow")
    if not hasattr(pyarrow, "RecordBatch"):  # another thread is in the middle of importing it
        return {}
    classes = [pyarrow.Table, pyarrow.RecordBatch, pyarrow.ChunkedArray, *_subclasses(pyarrow.Array)]
    return dict.fromkeys(classes, _reduce)


def _subclasses(cls: Any) -> Iterator[type]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _subclasses(subclass)


def _reduce(value: Any) -> Any:
    if value.get_total_buffer_size() - value.nbytes > _SLACK_BYTES:
        import pyarrow as pa

        try:
            return _restore, (type(value).__name__, pickle.PickleBuffer(_stream_of(value)))
        except (pa.ArrowException, NotImplementedError):
            pass  # a type that streams do not know
    return value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _stream_of(value: Any) -> Any:
    """The value as the only content of a stream."""
    import pyarrow as pa

    if isinstance(value, pa.ChunkedArray):
        value = pa.Table.from_arrays([value], [""])
    elif isinstance(value, pa.Array):
        value = pa.RecordBatch.from_arrays([value], [""])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, value.schema) as writer:
        writer.write(value)
    return sink.getvalue()


def _restore(kind: str, buffer: Any) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(buffer)) as reader:
        if kind == "Table":
            return reader.read_all()
        if kind == "ChunkedArray":
            return reader.read_all().column(0)
        batch = reader.read_next_batch()
    return batch if kind == "RecordBatch" else batch.column(0)
