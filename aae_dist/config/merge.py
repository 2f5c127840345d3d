"""Merge layers of configuration: later layers win, maps are merged, lists are replaced."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from aae_dist.config import schema
from aae_dist.config.schema import Classes, Node, Tree, Value, join, leaves, short_json
from aae_dist.config.sections import Section

# Alternative keys: a later layer that sets one of them unsets the other.
EXCLUSIVE = (("train", ("steps", "epochs")),)


@dataclass
class Merge:
    """Merges layers of one configuration and notes the values that it drops."""

    root: type[Section]
    notes: list[str] = field(default_factory=list)

    def run(self, layers: list[Tree]) -> Tree:
        """Return the merged tree of `layers`, first to last, over the defaults of the root."""
        for section, keys in EXCLUSIVE:
            layers = self._drop_alternatives(layers, section, keys)
        merged = self._node((self.root,), list(enumerate([_defaults(self.root), *layers])), "")
        assert isinstance(merged, dict)
        return merged

    def _node(self, classes: Classes, nodes: list[tuple[int, Node]], path: str) -> Node:
        """Merge the nodes at one path, each with the number of its layer, lowest first."""
        last = nodes[-1][1]
        if isinstance(last, Value):
            return last
        maps: list[tuple[int, Tree]] = []
        for layer, node in nodes:
            # A map that follows a plain value replaces it.
            maps = [*maps, (layer, node)] if isinstance(node, dict) else []
        if schema.by_kind(classes):
            classes, maps = self._choose_kind(schema.by_kind(classes), maps, path)
        keys = dict.fromkeys(key for _, tree in maps for key in tree)
        return {key: self._child(classes, maps, path, key) for key in keys}

    def _child(self, classes: Classes, maps: list[tuple[int, Tree]], path: str, key: str) -> Node:
        below = schema.children(classes, key)
        nodes = [(layer, tree[key]) for layer, tree in maps if key in tree]
        if below and not any(_optional(cls, key) for cls in classes):
            # `train:` with all its lines commented out is null in YAML and sets nothing.
            nodes = [(n, node) for n, node in nodes if not _is_null(node)] or [(0, {})]
        return self._node(below, nodes, join(path, key))

    def _choose_kind(
        self, variants: Mapping[str, type[Section]], maps: list[tuple[int, Tree]], path: str
    ) -> tuple[Classes, list[tuple[int, Tree]]]:
        """Keep the fields of the final kind; drop what earlier layers set for another kind."""
        # The last layer that sets `kind` decides.
        given = [(layer, tree["kind"]) for layer, tree in maps if "kind" in tree]
        if not given:
            return tuple(dict.fromkeys(variants.values())), maps
        kinds = [(layer, node.value if isinstance(node, Value) else None) for layer, node in given]
        final = kinds[-1][1]
        if not isinstance(final, str) or final not in variants:
            # Keep only the invalid kind, for the error message.
            return (), [(given[-1][0], {"kind": given[-1][1]})]
        if kinds[0] != (0, final) and maps[0][0] == 0:
            # The default has another kind: use the defaults of the new class.
            before = variants.get(str(kinds[0][1]))
            if before is not None:
                self._note_defaults(maps, before, variants[final], path)
            maps = [(0, _defaults(variants[final])), *maps[1:]]
        # Drop the fields of other kinds from layers before the final kind was set.
        since = _since(kinds)
        known = set(schema.keys_of(tuple(variants.values())))
        foreign = known - set(variants[final].model_fields)
        kept = [
            (n, self._without(tree, foreign, path, final) if n < since else tree)
            for n, tree in maps
        ]
        return (variants[final],), kept

    def _without(self, tree: Tree, keys: set[str], path: str, kind: str) -> Tree:
        for key in [key for key in tree if key in keys]:
            self._note(tree[key], join(path, key), f"{join(path, 'kind')} is now {kind}")
        return {key: node for key, node in tree.items() if key not in keys}

    def _note_defaults(
        self, maps: list[tuple[int, Tree]], old: type[Section], new: type[Section], path: str
    ) -> None:
        """Note defaults specific to this path that the new kind's own defaults replace."""
        changes = []
        for key, node in maps[0][1].items():
            if key == "kind" or key not in new.model_fields or any(key in t for _, t in maps[1:]):
                continue
            value, own = schema.plain(node), schema.default_of(new, key)
            if value not in (own, schema.default_of(old, key)):
                changes.append(f"{key}={short_json(own)} instead of {short_json(value)}")
        if changes:
            kind = schema.choices(new.model_fields["kind"].annotation)[0]
            replaced = ", ".join(changes)
            self.notes.append(
                f"{join(path, 'kind')} is now {kind}, with its own defaults: {replaced}"
            )

    def _note(self, node: Node, path: str, reason: str) -> None:
        for where, leaf in leaves(node, path):
            self.notes.append(f"{where}={short_json(leaf.value)} ({leaf.source}) dropped: {reason}")

    def _drop_alternatives(
        self, layers: list[Tree], section: str, keys: tuple[str, ...]
    ) -> list[Tree]:
        """Drop the keys that a later layer replaces by an alternative one."""
        last = max((n for n, tree in enumerate(layers) if _sets(tree, section, keys)), default=0)
        winners = [key for key in keys if layers and _sets(layers[last], section, (key,))]
        result = []
        for n, tree in enumerate(layers):
            part = tree.get(section)
            losers = [k for k in keys if k not in winners and _sets(tree, section, (k,))]
            if n < last and losers and isinstance(part, dict):
                for key in losers:
                    self._note(
                        part[key], join(section, key), f"{section}.{winners[0]} is set later"
                    )
                part = {key: node for key, node in part.items() if key not in losers}
                tree = {**tree, section: part}
            result.append(tree)
        return result


def _defaults(cls: type[Section]) -> Tree:
    return {
        key: schema.from_plain(part, "default") for key, part in schema.default_tree(cls).items()
    }


def _since(kinds: list[tuple[int, object]]) -> int:
    """Return the first layer after which the kind stays the final one."""
    since, final = kinds[-1]
    for layer, kind in reversed(kinds):
        if kind != final:
            break
        since = layer
    return since


def _sets(tree: Tree, section: str, keys: tuple[str, ...]) -> bool:
    part = tree.get(section)
    return isinstance(part, dict) and any(k in part and not _is_null(part[k]) for k in keys)


def _is_null(node: Node) -> bool:
    return isinstance(node, Value) and node.value is None


def _optional(cls: type[Section], key: str) -> bool:
    field = cls.model_fields.get(key)
    return field is not None and type(None) in get_args(field.annotation)
