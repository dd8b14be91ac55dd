//! The ledger: what Sexton promised, written before the kernel is touched.
//!
//! One SQLite database in the state directory, used by a daemon and by short-lived tools at the same time; no tokio,
//! no daemon needed. This crate owns every byte of it and all of Sexton's SQL, and decides nothing about processes.
//!
//! - [`Ledger`] writes, on a thread of its own, several batches in one transaction; [`Reader`] reads beside it.
//! - [`check`] and every refused open change no byte on the disk.
//! - [`boot_check`] settles once what the previous boot left.
//! - [`dump`], [`verify`] and [`backup`] work with and without a daemon.

#![forbid(unsafe_code)]

pub mod batch;
mod boot;
mod checksum;
mod connect;
pub mod duration;
pub mod entry;
pub mod event;
mod export;
mod hold;
mod ledger;
mod look;
mod migrate;
mod open;
mod place;
mod read;
mod recent;
mod rows;
mod shared;
pub mod slot;
mod snapshot;
mod wal;
mod whereabouts;
mod writer;

pub use batch::{Batch, CommitError, Committed, RequestRecord, Urgency};
pub use boot::{BootCheck, Settled, boot_check};
pub use event::{Event, EventKind, NewEvent};
pub use export::{ExportError, PROBLEMS_TOLD, Report, backup, dump, verify};
pub use hold::hold;
pub use ledger::{Ledger, new_incarnation};
pub use look::{FILE_NAME, OpenError, check, files};
pub use open::{Contents, OpenOptions, check_lock};
pub use read::Reader;
pub use rows::{EVENTS_KEPT, REQUESTS_KEPT_FOR, ReadError};
pub use snapshot::Snapshot;
