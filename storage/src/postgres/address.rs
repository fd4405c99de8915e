//! The URL of a database, and what can be said of it before a connection is made.

use std::fs::File;
use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::Error;
use outlast_core::Reason;

/// Parses the URL and tries the files that it names.
pub(super) fn parse(text: &str) -> Result<PgConnectOptions, Error> {
    // The parsers take `postgres:/name` too, for a database on this machine.
    if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Err(not_valid("it does not begin with postgres://".into()));
    }
    let options = PgConnectOptions::from_str(text).map_err(|error| not_valid(Reason::of(error)))?;
    let url = Url::parse(text).map_err(|error| not_valid(Reason::of(error)))?;
    for (name, value) in url.query_pairs() {
        let is_root = matches!(&*name, "sslrootcert" | "ssl-root-cert" | "ssl-ca");
        let is_file = is_root || matches!(&*name, "sslcert" | "ssl-cert" | "sslkey" | "ssl-key");
        // The text of a certificate may stand in the place of its path.
        if is_file && !value.trim_start().starts_with("-----BEGIN") {
            File::open(&*value).map_err(|error| {
                let text = format!("{name}={value} of the Postgres URL cannot be read: {error}: check path and rights");
                Error::unusable(Reason::because(text, error))
            })?;
        }
        // Whoever names an authority wants the server checked; the other modes would take any server without a word.
        if is_root && !matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull) {
            return Err(Error::unusable(format!(
                "the Postgres URL names {name}, which counts only with sslmode=verify-full (or verify-ca): add it"
            )));
        }
    }
    Ok(options)
}

/// Where the server is, without who connects.
pub(super) fn place(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

/// Says nothing of the URL itself, which may hold a password.
fn not_valid(why: Reason) -> Error {
    let text = format!("the Postgres URL is not valid: {why}: write it like postgres://user:password@host/database");
    Error::unusable(why.reworded(text))
}
