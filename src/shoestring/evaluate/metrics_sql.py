"""SQL by what it returns: both queries run on SQLite copies that nothing can be written to; and by its syntax tree.

Queries come from a model, so each runs alone, without ATTACH, PRAGMA or functions that reach outside, within limits of
time, rows and value size.
"""

from __future__ import annotations

import functools
import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, require
from ..task import FROM_PROMPT, TaskConfig

MAX_QUERY_S = 5.0
MAX_ROWS = 100_000
MAX_VALUE_BYTES = 10_000_000
MAX_PATTERN_BYTES = 1000  # of LIKE, whose time grows with the wildcards
STEPS_BETWEEN_LOOKS = 10_000
SQLITE_HEADER = b"SQLite format 3\x00"
# Floats that agree to so many digits are the same: sums depend on their order.
FLOAT_DIGITS = 9
# Tables that a prompt declares are filled with so many rows, in so many databases.
NUM_FILLED_ROWS, NUM_FILLED = 12, 3
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_OUTSIDE = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "zeroblob", "randomblob"}
_TOKENS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|\w+|\S""", re.DOTALL)
# In a format: a width or precision taken from an argument, or of four digits and more.
_WIDE = re.compile(r"%[-+ 0,#!]*(?:\*|\d{4,}|\d*\.(?:\*|\d{4,}))")
_CREATE = re.compile(r"create\s+table\b", re.IGNORECASE)
_LITERALS = re.compile(r"'((?:[^']|'')*)'|(?<![\w.])(\d+(?:\.\d+)?)(?![\w.])")

Rows = list[tuple[Any, ...]]


class QueryFault(Exception):
    """Why a query gives no rows: SQLite's message, or the limit it passed."""


class Databases:
    """Where the queries of a task run: one database, several of one schema, or those each row's prompt declares."""

    def __init__(self, task: TaskConfig) -> None:
        self.from_prompt = task.database == FROM_PROMPT
        place = task.path(task.database)
        files = [] if self.from_prompt else sorted(place.iterdir()) if place.is_dir() else [place]
        self.fixed = [_opened(file, file.stat().st_mtime_ns) for file in files if file.is_file()]
        if not self.fixed and not self.from_prompt:
            raise ConfigError(f"task.database: {place} holds no file; give a SQLite file or an SQL script")

    def match(self, expected: str, output: str, prompt: str) -> tuple[bool, str | None, bool]:
        """Whether the output returns what the expected query does, everywhere; why it gave nothing; whether the
        expected query returned any row. Raises: DataError where the expected query does not run."""
        databases = self.fixed or _declared(prompt, expected)
        is_ordered = has_order(expected)
        is_same, is_telling = True, False
        for database in databases:
            try:
                wanted = run_query(database, expected)
            except QueryFault as fault:
                raise DataError(
                    f"expected query {expected[:80]!r} does not run on the database: {fault}; mend or drop the row"
                ) from None
            is_telling = is_telling or bool(wanted)
            try:
                found = run_query(database, output)
            except QueryFault as fault:
                return False, str(fault), is_telling
            is_same = is_same and same_rows(wanted, found, is_ordered)
        return is_same, None, is_telling


@functools.lru_cache(maxsize=16)
def _opened(file: Path, changed_ns: int) -> sqlite3.Connection:
    """A copy in memory of a SQLite file, or what an SQL script makes; the same one while the file is unchanged."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        with file.open("rb") as head:
            is_database = head.read(len(SQLITE_HEADER)) == SQLITE_HEADER
        if is_database:
            source = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
            source.backup(connection)
            source.close()
        else:
            connection.executescript(file.read_text(encoding="utf-8"))
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"task.database: {file} is neither a SQLite file nor an SQL script: {error}") from error
    return _closed(connection)


def _closed(connection: sqlite3.Connection) -> sqlite3.Connection:
    """The connection for reading alone, within limits."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")

    def allow(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _OUTSIDE:
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY

    connection.set_authorizer(allow)
    return connection


def run_query(connection: sqlite3.Connection, query: str) -> Rows:
    """The rows of one query. Raises: QueryFault."""
    query = query.strip().rstrip(";").strip()
    if not query:
        raise QueryFault("empty query")
    _require_narrow_formats(query)
    ends_at = time.monotonic() + MAX_QUERY_S
    connection.set_progress_handler(lambda: int(time.monotonic() > ends_at), STEPS_BETWEEN_LOOKS)
    try:
        rows: Rows = connection.execute(query).fetchmany(MAX_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, OverflowError, MemoryError, ValueError) as error:
        raise QueryFault(f"passed {MAX_QUERY_S:g} s" if str(error) == "interrupted" else str(error)) from None
    finally:
        connection.set_progress_handler(None, 0)
    if len(rows) > MAX_ROWS:
        raise QueryFault(f"more than {MAX_ROWS:,} rows")
    return rows


def _require_narrow_formats(query: str) -> None:
    """One call of printf with a width of billions runs for a minute, and no limit of SQLite's reaches into a call."""
    tokens = [token.strip('"`[]') for token in _TOKENS.findall(query) if not token.startswith(("--", "/*"))]
    for at, token in enumerate(tokens[:-1]):
        if token.casefold() in ("printf", "format") and tokens[at + 1] == "(":
            text, after = (*tokens[at + 2 : at + 4], "", "")[:2]
            if not text.startswith("'") or after not in (",", ")") or _WIDE.search(text):
                raise QueryFault(f"{token} with a format that is computed or wide")


def same_rows(one: Rows, other: Rows, is_ordered: bool) -> bool:
    """Whether two results agree: columns by place, rows in order where asked, else as often as they come."""
    left, right = ([tuple(map(_value, row)) for row in rows] for rows in (one, other))
    return left == right if is_ordered else Counter(left) == Counter(right)


def _value(value: Any) -> Any:
    return float(f"{value:.{FLOAT_DIGITS}g}") if isinstance(value, float) else value


def has_order(query: str) -> bool:
    """Whether the query itself (no subquery) has ORDER BY."""
    depth, before = 0, ""
    for token in _TOKENS.findall(query):
        depth += (token == "(") - (token == ")")
        word = token.casefold()
        if depth == 0 and before == "order" and word == "by":
            return True
        before = word
    return False


@functools.lru_cache(maxsize=256)
def _declared(prompt: str, expected: str) -> list[sqlite3.Connection]:
    """Databases with the tables that a prompt declares, filled with rows among which the query's constants recur."""
    statements = create_statements(prompt)
    if not statements:
        raise DataError("task.database is `prompt`, and the prompt declares no table (CREATE TABLE ...)")
    made = []
    for seed in range(NUM_FILLED):
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            for statement in statements:
                connection.execute(statement)
            _fill(connection, expected, seed)
        except sqlite3.Error as error:
            raise DataError(f"the tables that the prompt declares cannot be made: {error}") from None
        made.append(_closed(connection))
    return made


def create_statements(text: str) -> list[str]:
    """The CREATE TABLE statements of a text, each to its closing parenthesis."""
    found = []
    for match in _CREATE.finditer(text):
        depth = 0
        for token in _TOKENS.finditer(text, match.end()):
            depth += (token.group() == "(") - (token.group() == ")")
            if depth == 0 and token.group() == ")":
                found.append(text[match.start() : token.end()])
                break
    return found


def _fill(connection: sqlite3.Connection, query: str, seed: int) -> None:
    """Few different values, so that joins and conditions meet: as test suites of Zhong et al. 2020 (2010.02840)."""
    rng = random.Random(seed)
    literals = _LITERALS.findall(query)
    texts = ["a", "b", "c", *(text.replace("''", "'").strip("%") for text, number in literals if not number)]
    constants = [float(number) if "." in number else int(number) for _, number in literals if number]
    numbers: Sequence[float] = [0, 1, 2, 3, *(n + step for n in constants for step in (-1, 0, 1))]
    for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
        name = '"' + table.replace('"', '""') + '"'
        columns = connection.execute(f"pragma table_info({name})").fetchall()
        places = ", ".join("?" * len(columns))
        for number in range(NUM_FILLED_ROWS):
            row = [_filling(rng, column[2], column[5], number, numbers, texts) for column in columns]
            # A constraint that such a row breaks leaves the row out.
            connection.execute(f"insert or ignore into {name} values ({places})", row)


def _filling(
    rng: random.Random, kind: str, is_key: int, number: int, numbers: Sequence[float], texts: Sequence[str]
) -> Any:
    is_text = bool(re.search(r"char|text|clob|date|time|enum", kind, re.IGNORECASE))
    if is_key == 1 and not is_text:
        return number
    return rng.choice(texts) if is_text else rng.choice(numbers)


def ast_match(expected: str, output: str) -> tuple[bool, str | None]:
    """Whether two queries have one syntax tree, case, operand order of AND, OR, = and the direction of < apart.

    Returns also why the output has none. Raises: DataError where the expected query does not parse, MissingDependency.
    """
    wanted, fault = _tree(expected)
    if wanted is None:
        raise DataError(f"expected query {expected[:80]!r} does not parse: {fault}; mend or drop the row")
    found, fault = _tree(output)
    return wanted == found, fault


@functools.lru_cache(maxsize=4096)
def _tree(query: str) -> tuple[str | None, str | None]:
    """The query in one canonical spelling, or why it does not parse."""
    sqlglot = require("sqlglot", extra="sql", purpose="metric ast_match")
    exp = sqlglot.exp
    try:
        tree = sqlglot.parse_one(query.strip().rstrip(";"), read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        return None, f"does not parse: {str(error).splitlines()[0][:120]}"
    for name in tree.find_all(exp.Identifier):
        name.set("this", name.this.lower())
        name.set("quoted", False)

    def ordered(node: Any) -> Any:
        if isinstance(node, (exp.GT, exp.GTE)):
            return (exp.LT if isinstance(node, exp.GT) else exp.LTE)(this=node.expression, expression=node.this)
        if isinstance(node, (exp.EQ, exp.NEQ)) and node.this.sql() > node.expression.sql():
            return type(node)(this=node.expression, expression=node.this)
        if isinstance(node, exp.In) and node.expressions:
            node.set("expressions", sorted(node.expressions, key=lambda part: part.sql()))
        return node

    tree = tree.transform(ordered)
    for kind in (exp.And, exp.Or):
        for node in list(tree.find_all(kind)):
            if isinstance(node.parent, kind):
                continue
            joined, *others = sorted((part.unnest() for part in node.flatten()), key=lambda part: part.sql())
            for part in others:
                joined = kind(this=joined, expression=part)
            if node.parent is None:
                tree = joined
            else:
                node.replace(joined)
    return tree.sql(dialect="sqlite", comments=False), None
