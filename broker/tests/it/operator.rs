//! An operator of NATS servers, who signs accounts, who sign users: what `nsc` makes, made by hand.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;

/// Without a bound: the JWTs of tests are valid for ever.
const FREE: &str = r#""subs":-1,"data":-1,"payload":-1"#;
/// What an account needs, so that it may keep streams.
const JETSTREAM: &str = r#""mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1,"max_ack_pending":-1"#;

pub(crate) struct Operator {
    key: KeyPair,
    system: KeyPair,
    pub(crate) account: KeyPair,
}

impl Operator {
    pub(crate) fn new() -> Self {
        Self { key: KeyPair::new_operator(), system: KeyPair::new_account(), account: KeyPair::new_account() }
    }

    /// Writes the configuration of a server that knows the account.
    pub(crate) fn configure(&self, directory: &Path, jetstream: bool) -> PathBuf {
        let operator = jwt(&self.key, &self.key.public_key(), r#""type":"operator","version":2"#);
        let (system, account) = (self.system.public_key(), self.account.public_key());
        let text = format!(
            "operator: {operator}\nsystem_account: {system}\nresolver: MEMORY\n\
             resolver_preload {{\n  {system}: {}\n  {account}: {}\n}}\n",
            self.admit(&system, ""),
            self.admit(&account, if jetstream { JETSTREAM } else { "" }),
        );
        let path = directory.join("operator.conf");
        fs::write(&path, text).unwrap();
        path
    }

    fn admit(&self, account: &str, more: &str) -> String {
        let comma = if more.is_empty() { "" } else { "," };
        let limits = format!(r#"{FREE},"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1{comma}{more}"#);
        jwt(&self.key, account, &format!(r#""limits":{{{limits}}},"type":"account","version":2"#))
    }
}

/// A credentials file of a new user of an account.
pub(crate) fn credentials(account: &KeyPair, directory: &Path) -> PathBuf {
    let user = KeyPair::new_user();
    let jwt = jwt(account, &user.public_key(), &format!(r#""pub":{{}},"sub":{{}},{FREE},"type":"user","version":2"#));
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    let path = directory.join(format!("{}.creds", user.public_key()));
    fs::write(&path, text).unwrap();
    path
}

fn jwt(issuer: &KeyPair, subject: &str, nats: &str) -> String {
    let header = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;
    let issuer_key = issuer.public_key();
    let claims = format!(
        r#"{{"jti":"{subject}","iat":1,"iss":"{issuer_key}","name":"test","sub":"{subject}","nats":{{{nats}}}}}"#
    );
    let body = format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(claims.as_bytes()));
    let signature = issuer.sign(body.as_bytes()).unwrap();
    format!("{body}.{}", BASE64URL_NOPAD.encode(&signature))
}
