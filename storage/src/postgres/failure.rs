//! What a statement that failed means: for its caller, and for the group that it was part of.

use std::borrow::Cow;
use std::io::ErrorKind;

use outlast_core::{InstanceId, Reason};

use crate::Error;

/// What a failure of TLS can come from.
const CHECK_TLS: &str = "check that the server offers TLS, that sslrootcert holds the authority of its certificate, that the \
                         certificate holds the host name of the URL, and sslcert and sslkey";

/// What a statement can end in.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sql(error) => sql_error(error),
            Failure::Store(error) => error,
        }
    }
}

/// The SQLSTATE of a failed statement; `None` when the database did not answer.
pub(super) fn code_of(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}

/// What a failed statement means for the caller.
pub(super) fn sql_error(error: sqlx::Error) -> Error {
    match (code_of(&error).as_deref(), &error) {
        (Some("42501"), _) => Error::Forbidden(Reason::of(error)),
        (Some("28P01" | "28000" | "3D000"), _) => {
            let text =
                format!("Postgres refuses: {error}: check user, password, client certificate, database and grants");
            Error::unusable(Reason::because(text, error))
        }
        (Some("42P01" | "42883" | "3F000"), _) => {
            let text = format!("the schema is not up to date: {error}: run the migration first");
            Error::unusable(Reason::because(text, error))
        }
        (None, sqlx::Error::Tls(_) | sqlx::Error::Configuration(_)) => {
            Error::unusable(Reason::because(format!("{error}: {CHECK_TLS}"), error))
        }
        (None, sqlx::Error::Io(failed)) if failed.kind() == ErrorKind::InvalidData => {
            Error::unusable(Reason::because(format!("TLS with Postgres failed ({failed}): {CHECK_TLS}"), error))
        }
        _ => Error::unavailable(Reason::of(error)),
    }
}

/// Whether a statement failed because of what was to be written: the same group, split, may go through.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    code_of(error).is_some_and(|code| ["22", "23", "54", "P0", "OL"].iter().any(|class| code.starts_with(class)))
}

/// Whether it failed because another transaction was in the way: doing it again is all that is needed.
pub(super) fn is_collision(error: &sqlx::Error) -> bool {
    matches!(code_of(error).as_deref(), Some("40P01" | "40001" | "55P03"))
}

pub(super) fn corrupt(instance: &InstanceId, reason: String) -> Error {
    Error::Corrupt { instance: instance.clone(), reason }
}
