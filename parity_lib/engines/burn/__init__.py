"""The candidate: builds of the Rust crate, and calls into them."""
