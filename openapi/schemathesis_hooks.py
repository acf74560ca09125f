"""Names what exists, which the document cannot: without it nearly every request is refused for an unknown id.

Every second request keeps the invented ids. Which ones depends on the data alone, so that a seed gives the same run.
"""

import os

import schemathesis

SERVICE = os.environ.get("CHANDLER_SERVICE_ID")
PLAN = os.environ.get("CHANDLER_PLAN_ID")


def _chosen(value):
    return isinstance(value, str) and len(value) % 2 == 1


def _named(container):
    """Whether both ids now name what exists."""
    if not SERVICE or not isinstance(container, dict):
        return False
    for member, known in (("service_id", SERVICE), ("plan_id", PLAN)):
        if _chosen(container.get(member)):
            container[member] = known
    return container.get("service_id") == SERVICE and container.get("plan_id") == PLAN


@schemathesis.hook
def map_body(context, body):
    if _named(body):
        # What else stands in the way of acceptance. Members of a wrong type stay: they have to be refused.
        for member in ("organization_guid", "space_guid"):
            if body.get(member) is None or isinstance(body[member], str):
                body[member] = "guid"
        for member in ("parameters", "maintenance_info"):
            if isinstance(body.get(member), dict):
                del body[member]
    return body


@schemathesis.hook
def map_query(context, query):
    _named(query)
    if isinstance(query, dict) and len(str(query.get("plan_id"))) % 3:
        query["accepts_incomplete"] = "true"
    return query


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    if isinstance(path_parameters, dict):
        for member in ("instance_id", "binding_id"):
            value = path_parameters.get(member)
            # Few ids, so that requests meet what earlier ones made.
            if _chosen(value):
                path_parameters[member] = f"known-{len(value) % 3}"
    return path_parameters
