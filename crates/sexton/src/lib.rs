//! Sexton, the product: CLI, node daemon, API.

#![forbid(unsafe_code)]

pub mod api;
pub mod chain;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod doctor;
mod lacking;
pub mod log;
pub mod metrics;
pub mod net;
pub mod node;
pub mod refusal;
mod signal_name;
