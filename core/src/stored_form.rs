//! The stored form of values: a version byte, then MessagePack with named fields.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The only version so far. A reader of a later version reads this one too, for ever.
const VERSION: u8 = 1;

/// Bytes that are not a stored value.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Nothing there.
    #[error("stored value is empty")]
    Empty,
    /// Written by a newer program.
    #[error("stored value has version {0}, this program reads up to {VERSION}: upgrade it")]
    Newer(u8),
    /// Damaged, or of another type.
    #[error("stored value is not readable: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
}

/// Turns a value into its stored form.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    rmp_serde::encode::write_named(&mut bytes, value).expect("our stored types serialize, and a Vec takes all bytes");
    bytes
}

/// Reads a value from its stored form.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Empty),
        Some((&VERSION, data)) => Ok(rmp_serde::from_slice(data)?),
        Some((&other, _)) => Err(DecodeError::Newer(other)),
    }
}
