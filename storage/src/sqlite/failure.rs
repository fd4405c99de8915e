//! What a failed statement means.

use rusqlite::ErrorCode;

use crate::Error;
use outlast_core::Reason;

/// Every failure of a statement that is not a constraint: try again.
pub(super) fn sql_error(error: rusqlite::Error) -> Error {
    Error::unavailable(Reason::of(error))
}

/// Whether a statement failed because the data breaks a rule of the schema.
pub(super) fn is_constraint(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch)
    )
}
