//! Sexton, the product: CLI, node daemon, API.

#![forbid(unsafe_code)]

pub mod node;
pub mod refusal;
