"""What a map recommends, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from revsurgeon.errormap.short import short_number

if TYPE_CHECKING:
    from revsurgeon.errormap import ErrorMap
    from revsurgeon.errormap.recommend import Route


def recommendation(found: ErrorMap) -> list[str]:
    """Return the recommended route, what the other arithmetic would do, and where float needs anchors."""
    chosen = found.recommended
    if chosen is None:
        return ["Nothing to recommend: no point can be reversed with gradients that are not garbage."]
    lines = [f"Recommended: {_route(chosen.route)}."]
    if chosen.other is not None:
        lines.append(f"In {chosen.other.arithmetic} arithmetic: {_route(chosen.other)}.")
    elif "float" in found.arithmetics and chosen.route.arithmetic == "exact":
        lines.append("In float arithmetic gradients are garbage wherever one could be.")
    if found.exact_failure is not None:
        lines.append(f"Exact arithmetic does not work here: {found.exact_failure}")
    possible = [(a, b, k) for a, b, k in chosen.anchors if k]
    if possible:
        alpha, beta, every = min(possible, key=lambda anchor: anchor[2])
        unit = "segment" if every == 1 else f"{every} segments"
        lines.append(
            f"Float gradients at ({alpha:g}, {beta:g}) would need anchors every {unit} to err below 1e-3."
        )
    if len(possible) < len(chosen.anchors):
        lines.append("Float gradients would be imprecise there however many anchors there are.")
    return lines


def _route(route: Route) -> str:
    def point(place: tuple[float, float]) -> str:
        return f"({place[0]:g}, {place[1]:g})"

    at = route.points[0]
    if route.start == route.end:
        way = f"stay at {point(route.start)}"
    else:
        way = f"move from {point(route.start)} to {point(route.end)}, {route.order}"
    facts = [f"{route.arithmetic} arithmetic", f"drift {short_number(at.drift)} at the start"]
    if route.arithmetic == "exact":
        facts.append(f"{max(p.bits or 0 for p in route.points)} bits an element and segment")
    else:
        worst = max(p.errors["float"].whole.relative for p in route.points)
        facts.append(f"gradient error up to {short_number(worst)}")
    return f"{way}; {', '.join(facts)}"
