//! Custody of this node's instances: one driver knows every life, each life owns its row.

pub mod adapter;
pub mod adopt;
mod crash;
pub mod drain;
pub mod driver;
mod end;
pub mod event_log;
pub mod host;
pub mod keeper;
mod life;
mod limits;
mod logs;
mod process;
pub(crate) mod readiness;
mod reconcile;
mod recover;
pub mod request;
mod rest;
pub mod slots;
mod start;
mod stop;
mod strays;
mod user;
pub mod watch;
pub mod worker;

pub use start::chain;
