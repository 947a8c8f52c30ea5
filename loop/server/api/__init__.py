"""One file per resource: schemas, handlers, routes."""
