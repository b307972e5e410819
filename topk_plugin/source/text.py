"""The text of a source file, as it is to be written back, and digests that tell it from others."""

from __future__ import annotations

import hashlib
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

from topk_plugin.errors import UnsupportedUpstream


@dataclass(frozen=True)
class Source:
    """A file's text, as it is to be written back."""

    text: str
    encoding: str = "utf-8"

    @classmethod
    def read(cls, path: Path) -> Source:
        """Raises UnsupportedUpstream where it is no text."""
        data = path.read_bytes()
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            return cls(data.decode(encoding), encoding)
        except (SyntaxError, UnicodeDecodeError) as error:
            raise UnsupportedUpstream(f"{path}: found no Python source ({error})") from None

    def encode(self) -> bytes:
        return self.text.encode(self.encoding)


def lines_of(text: str) -> list[str]:
    """Lines as Python counts them, with their ends."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", text)


def digest(text: str) -> str:
    """12 hex digits that do not change with comments, white space and line ends."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    words = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text, newline="").readline):
            if token.type not in layout:
                words.append(token.string)
    except (tokenize.TokenError, IndentationError):  # the first line of a block has no block
        pass
    return hashlib.sha256("".join("".join(words).split()).encode()).hexdigest()[:12]


def digest_of_file(path: Path) -> str:
    """Of a whole file, whatever its line ends."""
    data = path.read_bytes().replace(b"\r\n", b"\n")
    return hashlib.sha256(data).hexdigest()[:12]
