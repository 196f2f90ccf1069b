"""Names that a user may have meant, from the lists that the libraries themselves keep."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def close_names(name: str, known: Iterable[str], limit: int = 5) -> list[str]:
    """Return the known names that are most like `name`, best first."""
    by_lower = {candidate.lower(): candidate for candidate in sorted(known)}
    wanted = name.lower()
    found = difflib.get_close_matches(wanted, by_lower, n=limit, cutoff=0.6)
    containing = sorted((key for key in by_lower if wanted in key and len(wanted) > 2), key=len)
    return [by_lower[key] for key in dict.fromkeys([*found, *containing])][:limit]


def did_you_mean(name: str, known: Iterable[str], prefix: str, otherwise: str) -> str:
    """Return the hint for an unknown name: close names, or else where to look them up.

    Args:
        prefix: what stands before a name in a source, as `timm:`.
        otherwise: the hint when nothing is close.
    """
    close = close_names(name, known)
    return "Did you mean " + ", ".join(prefix + other for other in close) + "?" if close else otherwise


def specs_that_name(word: str) -> list[str]:
    """Return the sources that a bare word may stand for: exact names first, else close ones."""
    import timm
    import torchvision
    from transformers import CONFIG_MAPPING

    known = {
        "timm:": [*timm.list_models(), *timm.list_pretrained()],
        "torchvision:": torchvision.models.list_models(),
        "transformers:": list(CONFIG_MAPPING.keys()),
    }
    exact = [prefix + word for prefix, names in known.items() if word in names]
    if exact:
        return exact
    specs = {name: prefix + name for prefix, names in reversed(known.items()) for name in names}
    return [specs[name] for name in close_names(word, specs, limit=3)]
