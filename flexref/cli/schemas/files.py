"""Schemas of files that users write and pass on: a policy, a machine."""

from flexref.cli.schemas.parts import POLICY
from flexref.json_types.objects import JsonField, JsonObject, object_of
from flexref.json_types.values import Either, JsonType, OneOf
from flexref.machine.machine import FORMAT, Machine
from flexref.machine.nominal_facts import NOMINAL_FILE

MEASURED = object_of(Machine)


def policy() -> JsonType:
    """A policy's file."""
    return POLICY


def machine() -> JsonType:
    """A machine's file: measured, or known by figures."""
    members = {"format": JsonField(OneOf((FORMAT,)), "Names this format and its version."), **MEASURED.members}
    return Either((JsonObject(MEASURED.title, MEASURED.about, members), NOMINAL_FILE))
