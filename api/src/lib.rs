//! REST, OpenAPI and dashboard over the Control trait.
