"""The custom resource definitions, made from the typed spec: schemas, defaults and rules of `kubectl apply`.

    definitions()      → {"streampairs": …, "streampairscalers": …}, plain values
    placed_rules()     → the rules in them, each with its node
    manifest(name)     → the YAML text of one, as it stands in crds/

`structural` turns a model into an OpenAPI schema as Kubernetes wants it, `validations` puts the rules of `rules.py`
and `releases.py` at their nodes, `definitions` adds what kubectl and autoscalers see, `text` writes YAML.
"""

from streamserve.contract.streampair.crd.definitions import definitions, placed_rules
from streamserve.contract.streampair.crd.text import manifest
from streamserve.contract.streampair.crd.validations import Placed, every_rule, place

__all__ = ["Placed", "definitions", "every_rule", "manifest", "place", "placed_rules"]
