//! Custody of this node's instances: one driver owns all mutable state, everything else sends it requests.

pub mod request;
