//! Sandbox of real processes for end-to-end cases, and what they share.
