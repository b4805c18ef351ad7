"""Where a page lies: as a path of the server, or as a file of the static site."""

import posixpath
from urllib.parse import quote, urlencode


class Links:
    """The server's links: absolute paths with a query."""

    is_static = False
    page_rows = 50
    """Features on one page of the table."""

    def to(self, page: str, run: str = "", number: int | str | None = None, /, **query: object) -> str:
        path = "/" + "/".join(quote(str(part)) for part in (page, run, number) if part not in ("", None))
        asked = {name: value for name, value in query.items() if value not in ("", None, False, 0)}
        return path + ("?" + urlencode(asked) if asked else "")

    def static(self, name: str) -> str:
        return f"/static/{name}"


class FileLinks(Links):
    """Links between files, relative to the page that is being written: `here`. Queries are dropped."""

    is_static = True

    def __init__(self, exported: int) -> None:
        self.here, self.page_rows = "index.html", exported

    def file(self, page: str, run: str = "", number: int | str | None = None) -> str:
        parts = [str(part) for part in (page, run, number) if part not in ("", None)]
        return "/".join(parts) + ".html" if parts else "index.html"

    def to(self, page: str, run: str = "", number: int | str | None = None, /, **query: object) -> str:
        if page == "feature" and int(number or 0) >= self.page_rows:
            return ""
        target = self.file(page, run, number)
        return quote(posixpath.relpath(target, posixpath.dirname(self.here) or "."))

    def static(self, name: str) -> str:
        return posixpath.relpath(f"static/{name}", posixpath.dirname(self.here) or ".")
