"""Texts as they come, read once."""

from __future__ import annotations

from collections.abc import Iterator

from moe_probe.texts.corpus import Texts


def read_once(texts: Texts) -> Texts:
    """Texts that can be read several times: a generator becomes a list."""
    return list(texts) if isinstance(texts, Iterator) else texts
