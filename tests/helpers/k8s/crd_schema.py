"""Turns a CRD's ``openAPIV3Schema`` into a JSON schema as strict as an API server with strict field validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]  # publishes no types

if TYPE_CHECKING:
    from collections.abc import Iterator

Node = dict[str, Any]

PASSED_ON = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "anyOf")
LIST_KEYS = "x-kubernetes-list-map-keys"
UNDERSTOOD = {
    *PASSED_ON,
    LIST_KEYS,
    "additionalProperties",
    "default",
    "description",
    "format",  # int32 and the like; nothing here comes near their bounds
    "items",
    "nullable",
    "properties",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",  # CEL expressions; in these CRDs only about `managedBy`, which we leave alone
}
METADATA: Node = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
"""What we write of ``metadata``, which a CRD leaves to Kubernetes."""


def strict_schema(crd: Node, version: str) -> Node:
    """The JSON schema of one version of a CRD's objects, closed against every key that it does not name.

    Raises:
        StopIteration: The CRD has no such version.
        ValueError: The CRD uses a keyword that would be lost here.
    """
    served = next(candidate for candidate in crd["spec"]["versions"] if candidate["name"] == version)
    schema = _closed(served["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": f"{crd['spec']['group']}/{version}"},
        "kind": {"const": crd["spec"]["names"]["kind"]},
        "metadata": METADATA,
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def mistakes(schema: Node, instance: Any) -> list[str]:
    """The violations of the schema by an object, each as ``path: reason``."""
    found = sorted(_Validator(schema).iter_errors(instance), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def _closed(node: Node) -> Node:
    if unknown := node.keys() - UNDERSTOOD:
        raise ValueError(f"the CRD uses {sorted(unknown)}, which this conversion does not know")
    closed = {keyword: node[keyword] for keyword in PASSED_ON if keyword in node}
    if node.get("x-kubernetes-int-or-string"):
        closed.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if "items" in node:
        closed["items"] = _closed(node["items"])
        if node.get("x-kubernetes-list-type") == "set":
            closed["uniqueItems"] = True
        if LIST_KEYS in node:
            properties = node["items"]["properties"]
            closed[LIST_KEYS] = {key: properties[key].get("default") for key in node[LIST_KEYS]}
    if node.get("type") == "object" and not node.get("x-kubernetes-preserve-unknown-fields"):
        properties = node.get("properties", {})
        closed["properties"] = {name: _closed(child) for name, child in properties.items()}
        closed["required"] = [name for name in node.get("required", []) if "default" not in properties[name]]
        values = node.get("additionalProperties", False)
        closed["additionalProperties"] = _closed(values) if isinstance(values, dict) else values
    return {"anyOf": [closed, {"type": "null"}]} if node.get("nullable") else closed


def _unique_by_keys(_: Any, keys: Node, items: Any, __: Node) -> Iterator[jsonschema.ValidationError]:
    names = [tuple(item.get(key, default) for key, default in keys.items()) for item in items]
    for name in sorted({name for name in names if names.count(name) > 1}, key=str):
        yield jsonschema.ValidationError(f"two items have the same {', '.join(keys)}: {name}")


_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {LIST_KEYS: _unique_by_keys})
