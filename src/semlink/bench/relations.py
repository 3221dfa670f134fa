# SPDX-License-Identifier: Apache-2.0
"""What must hold between the fields of a recipe that are right by themselves."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from semlink._errors import SemlinkError, check_name
from semlink.bench import measures
from semlink.bench.mistakes import Keys

if TYPE_CHECKING:
    from semlink.bench.recipes import AttackEntry, Content, FigureEntry, LinkEntry


def relations(content: "Content") -> Iterator[tuple[Keys, Callable[..., Any], tuple[Any, ...]]]:
    """Yield what must hold between fields that are right by themselves: keys, a check, and its arguments."""
    from semlink import data
    from semlink.bench.links import check_channel
    from semlink.schemes import Task, schemes
    from semlink.schemes.options import check_option

    links, measured = content.links, content.evaluation.metrics
    if content.costs:
        for key in ("attacks", "figures", "evaluation"):
            yield (key,), _check_empty, (key, getattr(content, key))
        for name, link in links.items():
            yield ("links", name), _check_untrained, (link,)
    for name, link in links.items():
        at, shown = ("links", name), data.describe(link.data)
        yield (*at, "variant"), check_name, (f"variant of {link.data}", link.variant, data.variants(link.data))
        yield (
            (*at, "task"),
            Task.create,
            (
                link.task,
                shown.image_shape,
                shown.kind,
                shown.targets,
                shown.attributes,
            ),
        )
        yield (*at, "channel"), check_channel, (link.scheme, link.channel)
        yield (*at, "weights"), _check_one_seed, (link,)
        yield (*at, "start"), _check_start, (name, links)
        yield (*at, "against"), _check_against, (name, links)
        for option, value in link.options.items():
            yield (*at, "options", option), check_option, (link.scheme, option, value)
    for name, attack in content.attacks.items():
        at = ("attacks", name)
        for link in attack.links or ():
            yield (*at, "links"), check_name, ("link", link, links)
        yield (*at, "links"), _check_foreign, (attack, links)
        yield (*at, "csi"), _check_threat, (attack,)
        yield (*at, "channel"), _check_neighbour, (attack, links)
        yield (*at, "read"), _check_drawing, (attack, "read", False, "answers, and draws nothing to be read")
        yield (*at, "perceptual"), _check_drawing, (attack, "perceptual", "none", "answers, and has no perceptual loss")
        if attack.queries is not None:
            yield (*at, "queries"), _check_queries, (attack, links)
        if attack.with_secret:
            bare = [link for link, entry in links.items() if schemes[entry.scheme].secret is None]
            yield (*at, "with_secret"), _check_secret, (attack.links or list(links), bare)
    for metric in measured:
        yield ("evaluation", "metrics"), _check_part, (metric, links)
    for name, figure in content.figures.items():
        at = ("figures", name)
        for link in figure.links or ():
            yield (*at, "links"), check_name, ("link", link, links)
        for attack in figure.attacks or ():
            yield (*at, "attacks"), check_name, ("attack", attack, content.attacks)
        yield (*at, "metric"), _check_measured, (figure.metric, measured)
        yield (*at, "at_db"), _check_over, (figure, content)
        named = {*(figure.links or ())} <= links.keys() and {*(figure.attacks or ())} <= content.attacks.keys()
        if named and figure.metric in measured:
            yield (*at, "metric"), _check_drawn, (figure, content)
        yield at, _check_file, (name, content.figures)


def _check_empty(key: str, entries: Any) -> None:
    if entries and entries != type(entries)():
        raise SemlinkError(f"a bench of costs has no {key}; leave that out, or 'costs'")


def _check_untrained(link: "LinkEntry") -> None:
    if link.weights is not None or link.start is not None or link.against is not None:
        raise SemlinkError("a bench of costs trains and compares nothing; leave out 'weights', 'start' and 'against'")


def _check_one_seed(link: "LinkEntry") -> None:
    if link.weights is not None and len(link.seeds) != 1:
        raise SemlinkError(f"these weights are one trained link: expected exactly 1 seed, not {len(link.seeds)}")


def _check_start(name: str, links: dict[str, "LinkEntry"]) -> None:
    seen, link = [name], links[name]
    if link.start and link.weights:
        raise SemlinkError("a link with weights is not trained, so it starts from nothing; leave one of the two out")
    while link.start and not link.start.startswith("zoo:"):
        if link.start == seen[-1] or link.start not in links:
            others = [each for each in links if each != seen[-1]]
            check_name("link to start from ('zoo:' and a name is one too)", link.start, others)
        if link.start in seen:
            raise SemlinkError(f"links start from each other in a circle: {' from '.join([*seen, link.start])}")
        seen.append(link.start)
        link = links[link.start]


def _check_against(name: str, links: dict[str, "LinkEntry"]) -> None:
    if (against := links[name].against) is None:
        return
    other = links[check_name("link to compare with", against, [each for each in links if each != name])]
    if (other.data, other.variant) != (links[name].data, links[name].variant):
        raise SemlinkError(f"link '{against}' is of other images; name one of {links[name].data}")


def _check_secret(targets: list[str], bare: list[str]) -> None:
    if without := [link for link in targets if link in bare]:
        raise SemlinkError(f"without a secret: {', '.join(without)}; name in 'links' those whose scheme has one")


def _check_threat(attack: "AttackEntry") -> None:
    from semlink.attacks import Threat

    Threat(0.0, attack.with_secret, attack.antennas, attack.transmissions, attack.channel, attack.csi)


def _check_neighbour(attack: "AttackEntry", links: dict[str, "LinkEntry"]) -> None:
    from semlink.phy import channels

    if attack.channel is None:
        return
    medium = channels[attack.channel]()
    for name in attack.links or links:
        if name in links and not medium.beside(channels[links[name].channel]()):
            raise SemlinkError(
                f"nobody is on '{attack.channel}' while link '{name}' is on '{links[name].channel}'; "
                "name another channel, or others in 'links'"
            )


def _check_foreign(attack: "AttackEntry", links: dict[str, "LinkEntry"]) -> None:
    for name in attack.links or links:
        if name in links and links[name].variant == "shadow" and name != attack.queries:
            raise SemlinkError(f"'{name}' is the attacker's own link, trained on her images; name others in 'links'")


def _check_drawing(attack: "AttackEntry", key: str, silent: bool | str, why: str) -> None:
    if getattr(attack, key) != silent and attack.offers() == measures.INFERRED:
        raise SemlinkError(f"attack '{attack.attack}' {why}; leave '{key}' out")


def _check_part(metric: str, links: "dict[str, LinkEntry]") -> None:
    """Refuse a part that nothing has, and a metric that lacks its part."""
    from semlink import data
    from semlink.metrics import MI_VARIANTS

    base, dot, part = metric.partition(".")
    if base == "mi_legacy":
        check_name("MI variant (after 'mi_legacy.')", part, MI_VARIANTS)
    elif not dot:
        return
    elif base in measures.BY_USER and part.isdigit():
        most = max(measures.users(link) for link in links.values())
        if not 1 <= int(part) <= most:
            raise SemlinkError(
                f"'{metric}' is of user {part}: users are numbered from 1, and no link has more than {most}"
            )
    elif base not in measures.PARTED:
        raise SemlinkError(f"'{base}' has no parts, so '{metric}' is nothing; write '{base}'")
    else:
        sets = sorted({link.data for link in links.values()})
        attributes = [name for each in sets for name in data.describe(each).attributes]
        if not attributes:
            raise SemlinkError(f"images of {', '.join(sets)} have no attributes; write '{base}'")
        check_name("attribute", part, attributes)


def _check_over(figure: "FigureEntry", content: "Content") -> None:
    if figure.over == "snr_db":
        if figure.at_db is not None:
            raise SemlinkError("a figure over SNR shows all of it; leave at_db out, or name an option in over")
        return
    grid = content.evaluation.snr_db
    if figure.at_db not in grid:
        shown = ", ".join(f"{level:g}" for level in grid)
        raise SemlinkError(f"a figure over '{figure.over}' is drawn at_db one SNR of the grid: {shown}")
    if measures.is_metric(figure.over):
        _check_measured(figure.over, content.evaluation.metrics)
        for name in figure.links or content.links:
            if name in content.links and figure.over not in (offered := _offered(content.links[name])):
                raise SemlinkError(f"over is '{figure.over}', which link '{name}' has not: it offers {_few(offered)}")
        return
    if figure.attacks is not None:
        raise SemlinkError(f"a figure over '{figure.over}' shows links; leave 'attacks' out")
    for name in figure.links or content.links:
        if name in content.links and measures.option(content.links[name], figure.over) is None:
            scheme = content.links[name].scheme
            raise SemlinkError(f"over is '{figure.over}': scheme '{scheme}' of link '{name}' has no such number")
    places: dict[tuple[str, float | None], str] = {}
    for name in figure.links or content.links:
        if name in content.links:
            link = content.links[name]
            place = measures.series(link, figure.over), measures.option(link, figure.over)
            if place in places:
                raise SemlinkError(f"links '{places[place]}' and '{name}' would be the same point; name one in 'links'")
            places[place] = name


def _check_queries(attack: "AttackEntry", links: dict[str, "LinkEntry"]) -> None:
    from semlink.attacks import attacks

    queried = links[check_name("link", attack.queries or "", links)]
    for name in attack.links or links:
        if name == attack.queries:
            raise SemlinkError(f"'{name}' is its own victim; leave 'queries' out, or it out of 'links'")
        for key in ("data", "channel_uses"):
            if (own := getattr(links[name], key)) != (other := getattr(queried, key)):
                raise SemlinkError(f"link '{name}' has {key} {own!r}, '{attack.queries}' {other!r}; make them alike")
    if queried.variant != "shadow":
        raise SemlinkError(
            f"'{attack.queries}' is trained on images that are not the attacker's; give it variant = \"shadow\""
        )
    if sees := attacks[attack.attack].sees:
        raise SemlinkError(
            f"attack '{attack.attack}' is given the victim's {' and '.join(sorted(sees))}, and needs no model of it; "
            "leave 'queries' out"
        )


def _check_measured(metric: str, measured: list[str]) -> None:
    if metric not in measured:
        raise SemlinkError(f"'{metric}' is not measured; add it to evaluation.metrics, now {', '.join(measured)}")


def _check_drawn(figure: "FigureEntry", content: "Content") -> None:
    """Refuse a figure that no link and no attack of it has a number for."""
    links = figure.links or list(content.links)
    attacks = figure.attacks or list(content.attacks)
    attacked = [content.attacks[name] for name in attacks if {*links} & {*(content.attacks[name].links or links)}]
    if figure.attacks is not None and not attacked:
        raise SemlinkError("none of its attacks is on any of its links; change 'attacks' or 'links'")
    if any(attack.measured([figure.metric]) for attack in attacked):
        return
    if figure.attacks is not None:
        raise SemlinkError(
            f"'{figure.metric}' is not measured of its attacks; leave 'attacks' out, or take one of: "
            f"{', '.join(dict.fromkeys(metric for attack in attacked for metric in attack.offers()))}"
        )
    offered = dict.fromkeys(metric for link in links for metric in _offered(content.links[link]))
    if figure.metric not in offered:
        raise SemlinkError(
            f"none of its links is measured by '{figure.metric}', and no attack is; they offer: {_few(offered)}"
        )


def _offered(link: "LinkEntry") -> list[str]:
    """Return the metrics of a link's task, those of attributes and of the users of a network one by one."""
    from semlink import data

    shown = data.describe(link.data)
    natural = "reconstruct" if measures.users(link) else "classify" if shown.kind == "classes" else "attributes"
    kind, _, chosen = (link.task or natural).partition(":")
    if measures.users(link):
        metrics = measures.LINK[4:] if kind == "reconstruct" else measures.LINK[:1]
        return [*metrics, *(f"{metric}.{k + 1}" for metric in metrics for k in range(measures.users(link)))]
    if kind == "attributes":
        names = chosen.split(",") if chosen else shown.attributes
        return [f"{metric}.{name}" for metric in measures.ANSWERED for name in names]
    return list(measures.LINK[:2] if kind == "classify" else measures.LINK[4:6])


def _few(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:4]) + (f" and {len(every) - 4} more" if len(every) > 4 else "")


def _check_file(name: str, figures: Iterable[str]) -> None:
    for other in figures:
        if other == name:
            return
        if other.replace(" ", "-").lower() == name.replace(" ", "-").lower():
            raise SemlinkError(f"figures '{other}' and '{name}' would be the same file; rename one")
