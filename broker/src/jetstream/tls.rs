//! What encrypts connections to the servers: whom to trust, and by which certificate the servers know this client.
//!
//! The library that speaks to the servers takes one file of authorities and no more; so it is given a whole configuration.

use std::path::Path;
use std::sync::Arc;

use async_nats::ServerAddr;
use async_nats::rustls::crypto::{CryptoProvider, ring};
use async_nats::rustls::pki_types::pem::PemObject as _;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::{ClientConfig, RootCertStore};

use super::options::Tls;
use crate::Error;
use outlast_core::Reason;

/// Whether a server without encryption is refused. Servers that are learned of later have no `tls://` of their own, so
/// one in the list speaks for all.
pub(super) fn is_demanded(tls: &Tls, addresses: &[ServerAddr]) -> bool {
    tls.required
        || !tls.root_certificates.is_empty()
        || tls.client_certificate.is_some()
        || addresses.iter().any(ServerAddr::tls_required)
}

/// Reads the files and puts the configuration together.
pub(super) fn client_config(tls: &Tls) -> Result<ClientConfig, Error> {
    // With several in the program, rustls has no default until the program has chosen one.
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
    let trusting = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            let text = format!("the program's TLS provider has no usable protocol: {error}");
            Error::unusable(Reason::because(text, error))
        })?
        .with_root_certificates(authorities(tls)?);
    let Some(files) = &tls.client_certificate else {
        return Ok(trusting.with_no_client_auth());
    };
    let certificates = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable("private key", &files.key, Reason::of(error)))?;
    trusting.with_client_auth_cert(certificates, key).map_err(|error| {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let text = format!("certificate {certificate} and key {key} do not belong together: {error}");
        Error::unusable(Reason::because(text, error))
    })
}

/// Those that were named, otherwise those of the system.
fn authorities(tls: &Tls) -> Result<RootCertStore, Error> {
    let mut trusted = RootCertStore::empty();
    for path in &tls.root_certificates {
        for certificate in certificates(path)? {
            trusted.add(certificate).map_err(|error| unreadable("certificate", path, Reason::of(error)))?;
        }
    }
    if !tls.root_certificates.is_empty() {
        return Ok(trusted);
    }
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(target: super::LOG, %error, "a certificate of the system cannot be read");
    }
    trusted.add_parsable_certificates(found.certs);
    if trusted.is_empty() {
        let advice = "this machine trusts no authority: name the file of one in tls.root_certificates";
        return Err(Error::unusable(advice));
    }
    Ok(trusted)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| unreadable("certificate", path, Reason::of(error)))?;
    if found.is_empty() {
        return Err(unreadable("certificate", path, "it holds none".into()));
    }
    Ok(found)
}

fn unreadable(what: &str, path: &Path, why: Reason) -> Error {
    let text = format!("the {what} in {} cannot be used: {why}: check the path and the PEM file", path.display());
    Error::unusable(why.reworded(text))
}
