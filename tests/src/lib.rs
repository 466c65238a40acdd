//! Sandbox of real processes, seeded simulation, end-to-end cases, fixtures.
