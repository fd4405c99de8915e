//! What a connection that did not come about means: whether to wait, or to change something.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use async_nats::rustls::{self, CertificateError};
use async_nats::{ConnectError, ConnectErrorKind};

use super::options::Auth;
use crate::Error;
use outlast_core::Reason;

/// What is not mended by waiting is `Unusable` and says what to change.
pub(super) fn refusal(error: ConnectError, auth: &Auth, place: &str) -> Error {
    let advice = match error.kind() {
        ConnectErrorKind::AuthorizationViolation => refused(auth),
        ConnectErrorKind::Authentication => {
            "the nkey seed is not valid: use the one of a user, which begins with SU".to_owned()
        }
        ConnectErrorKind::Tls => format!("{error}: check the host name in the address, and tls"),
        ConnectErrorKind::ServerParse => format!("{error}: check the addresses of the servers"),
        ConnectErrorKind::Io => match tls_error(&error) {
            Some(tls) => format!("TLS with the server failed ({tls}): {}", advice(tls)),
            None => return no_server(place, Reason::of(error)),
        },
        ConnectErrorKind::Dns | ConnectErrorKind::TimedOut | ConnectErrorKind::MaxReconnects => {
            return no_server(place, Reason::of(error));
        }
    };
    Error::unusable(Reason::because(advice, error))
}

/// Nothing has said that it is a NATS server.
pub(super) fn no_answer(place: &str, waited: Duration) -> Error {
    no_server(place, format!("no answer within {waited:?}").into())
}

fn no_server(place: &str, why: Reason) -> Error {
    let text = format!("no NATS server at {place} ({why}): check host and port, and that nats-server runs there");
    Error::unavailable(why.reworded(text))
}

fn refused(auth: &Auth) -> String {
    match auth {
        Auth::None => {
            "the server wants to know who connects: set auth, or put user and password into the address".into()
        }
        Auth::CredentialsFile(path) => format!(
            "the server refuses the credentials file {}: check that its user's JWT has not ended or been revoked, and that \
             the server knows its account",
            path.display()
        ),
        Auth::NkeySeed(_) => {
            "the server refuses the nkey: add its public key to the server's users, or use another seed".into()
        }
        Auth::UserPassword { user, .. } => format!("the server refuses user {user:?}: check name and password"),
        Auth::Token(_) => "the server refuses the token: check it".into(),
    }
}

/// The library hands errors of TLS on as those of reading and writing.
fn tls_error(error: &ConnectError) -> Option<&rustls::Error> {
    error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()
}

fn advice(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "name the file of the authority that signed the server's certificate in tls.root_certificates"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "connect by a name that the server's certificate holds, or give the server one for this name",
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "renew the server's certificate, or set this machine's clock",
        rustls::Error::InvalidCertificate(_) => "give the server a certificate that can be checked",
        rustls::Error::InvalidMessage(_) => "the server does not offer TLS: turn it on there, or do not demand it",
        rustls::Error::AlertReceived(_) => {
            "the server turned this client away: give it a certificate that the server trusts in tls.client_certificate"
        }
        _ => "check the TLS settings of both sides",
    }
}
