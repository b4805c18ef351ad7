"""Addresses of pages: paths of the server, or files of the static site."""

import posixpath
from urllib.parse import quote, urlencode

INDEX = "index.html"
"""The first page of the static site."""


class Links:
    """The server's links: absolute paths with a query."""

    is_static = False
    page_rows = 50
    """Features on one page of the table."""

    def to(self, page: str, run: str = "", number: int | str | None = None, /, **query: object) -> str:
        """The address of a page; values of the query that are empty are left out.

        page: its kind; empty for the list of runs.
        run: the run's name.
        number: of a feature, or the kind of a report.
        """
        path = "/" + "/".join(quote(str(part)) for part in (page, run, number) if part not in ("", None))
        asked = {name: value for name, value in query.items() if value not in ("", None, False, 0)}
        return path + ("?" + urlencode(asked) if asked else "")

    def static(self, name: str) -> str:
        """The address of a style sheet or script."""
        return f"/static/{name}"


class FileLinks(Links):
    """Links between files, relative to the page that is being written: `here`. Queries are dropped."""

    is_static = True

    def __init__(self, exported: int) -> None:
        self.here = INDEX
        self.page_rows = exported

    def file(self, page: str, run: str = "", number: int | str | None = None) -> str:
        """The file of a page, below the folder of the site."""
        parts = [str(part) for part in (page, run, number) if part not in ("", None)]
        return "/".join(parts) + ".html" if parts else INDEX

    def to(self, page: str, run: str = "", number: int | str | None = None, /, **query: object) -> str:
        """The address of a page from the page that is being written; empty for a feature that has no page."""
        if page in ("feature", "graph") and int(number or 0) >= self.page_rows:
            return ""
        target = self.file(page, run, number)
        return quote(posixpath.relpath(target, posixpath.dirname(self.here) or "."))

    def static(self, name: str) -> str:
        return posixpath.relpath(f"static/{name}", posixpath.dirname(self.here) or ".")
