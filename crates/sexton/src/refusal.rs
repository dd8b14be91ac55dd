//! Why the caller may not, or why we could not: one table of stable codes for REST and CLI.

use std::fmt;

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $status:literal, $exit:literal, $title:literal;)*) => {
        /// A stable kind of refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $variant,)*
        }

        impl Kind {
            /// Every kind, in the order of the table.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)*];

            /// The stable code in `application/problem+json`.
            pub const fn code(self) -> &'static str {
                match self { $(Kind::$variant => $code,)* }
            }

            /// The HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Kind::$variant => $status,)* }
            }

            /// The exit code of the CLI.
            pub const fn exit(self) -> u8 {
                match self { $(Kind::$variant => $exit,)* }
            }

            /// What it means, in a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Kind::$variant => $title,)* }
            }
        }
    };
}

refusals! {
    /// A name, number, duration, size, body or path outside the contract.
    BadArgument = "bad_argument", 400, 2, "bad argument";
    /// No or wrong credentials.
    Unauthenticated = "unauthenticated", 401, 1, "not authenticated";
    /// Known, and not allowed to.
    Forbidden = "forbidden", 403, 1, "not allowed";
    /// No instance, route or thing of that name.
    NotFound = "not_found", 404, 3, "not found";
    /// The route knows other methods.
    MethodNotAllowed = "method_not_allowed", 405, 2, "method not allowed";
    /// The request did not arrive in time.
    RequestTimeout = "request_timeout", 408, 7, "request timed out";
    /// Another instance has that name.
    NameInUse = "name_in_use", 409, 4, "name in use";
    /// Refused in the present state.
    WrongState = "wrong_state", 409, 4, "refused in this state";
    /// The same key with another body.
    KeyReused = "idempotency_key_reused", 409, 4, "idempotency key reused";
    /// The program could not be run.
    ExecFailed = "exec_failed", 400, 1, "the program could not be run";
    /// The body is too large.
    TooLarge = "too_large", 413, 2, "body too large";
    /// The path is too long.
    UriTooLong = "uri_too_long", 414, 2, "address too long";
    /// The body is not JSON.
    UnsupportedMediaType = "unsupported_media_type", 415, 2, "unsupported media type";
    /// The headers are too large.
    HeadersTooLarge = "headers_too_large", 431, 2, "headers too large";
    /// We failed.
    Internal = "internal", 500, 1, "internal fault";
    /// The gate is closed.
    NodeDraining = "node_draining", 503, 4, "the node is draining";
    /// No room for another one.
    NodeFull = "node_full", 503, 4, "the node is full";
    /// No network slot is free, or none can be made.
    NoSlot = "no_slot", 503, 4, "no network slot";
    /// More requests at once than can be carried out.
    TooManyConnections = "too_many_connections", 503, 1, "too many requests at once";
    /// The disk is full or the ledger cannot be written.
    LedgerUnwritable = "ledger_unwritable", 503, 1, "the ledger cannot be written";
    /// The daemon is starting or ending.
    NotReady = "not_ready", 503, 6, "the daemon is not ready";
}

/// One refusal: its kind, and the sentence for whoever asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind it is.
    pub kind: Kind,
    /// What is wrong and what is allowed; names the field.
    pub detail: String,
}

impl Refusal {
    /// A refusal of `kind` that says `detail`.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Refusal {
        Refusal { kind, detail: detail.into() }
    }

    /// The daemon is ending; another one may answer soon.
    pub fn ending() -> Refusal {
        Refusal::new(Kind::NotReady, "the daemon is ending")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Refusal {}
