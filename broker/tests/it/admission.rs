//! Who gets into a server and whom a client trusts. Every server is one of the test's own, set up by a file as operators do.

use std::error::Error as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use nkeys::KeyPair;
use outlast_broker::Error;
use outlast_broker::jetstream::{Auth, ClientCertificate, JetStreamBroker, JetStreamOptions, Tls};
use outlast_core::TagFilter;
use outlast_test_support::{Authority, Certificate};

use crate::items::{item, key, open, publish, run};
use crate::operator::{Operator, credentials};
use crate::server::{Connects as _, Server};

/// A server with such a configuration.
fn configured(directory: &Path, text: &str) -> Server {
    let path = directory.join("server.conf");
    fs::write(&path, text).unwrap();
    Server::own_with(&["-c", path.to_str().unwrap()])
}

/// What a server's file says of its certificate.
fn certified(authority: &Authority, host: &str, more: &str) -> String {
    let files = authority.certify(host);
    format!("tls {{ cert_file: {:?}, key_file: {:?}, timeout: 5, {more} }}\n", files.certificate, files.key)
}

fn trusting(authority: &Authority) -> Tls {
    Tls { root_certificates: vec![authority.root()], ..Tls::default() }
}

fn with_auth(server: &Server, auth: Auth) -> JetStreamOptions {
    JetStreamOptions { auth, ..server.options("admission") }
}

fn with_tls(server: &Server, tls: Tls) -> JetStreamOptions {
    JetStreamOptions { tls, ..server.options("admission") }
}

/// A connection is good when an item goes all its way over it.
async fn works(options: JetStreamOptions) {
    let shown = format!("{options:?}");
    let broker = JetStreamBroker::connect(options).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    publish(&broker, item("a", 1)).await;
    assert_eq!(run(&mut source).await, key("a", 1));
}

/// Waiting would not help, and the text says what does.
async fn is_refused(options: JetStreamOptions, advice: &str) {
    let shown = format!("{options:?}");
    match JetStreamBroker::connect(options).await {
        Err(Error::Unusable(why)) => assert!(why.contains(advice), "{shown}: {why:?} does not say {advice:?}"),
        Err(other) => panic!("{shown}: {other:?}"),
        Ok(_) => panic!("{shown} is let in"),
    }
}

fn user_password(user: &str, password: &str) -> Auth {
    Auth::UserPassword { user: user.to_owned(), password: password.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_let_in_by_options_and_by_address() {
    let directory = tempfile::tempdir().unwrap();
    let server = configured(directory.path(), r#"authorization { user: "ann", password: "p@ss/:" }"#);
    works(with_auth(&server, user_password("ann", "p@ss/:"))).await;
    let mut by_address = server.options("admission");
    by_address.servers = vec![server.url.replace("nats://", "nats://ann:p%40ss%2F%3A@")];
    works(by_address.clone()).await;
    is_refused(with_auth(&server, user_password("ann", "s3cret")), "refuses user \"ann\": check name and password")
        .await;
    is_refused(with_auth(&server, Auth::None), "set auth").await;
    by_address.servers = vec![server.url.replace("nats://", "nats://ann:s3cret@")];
    is_refused(by_address, "refuses user \"ann\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in() {
    let directory = tempfile::tempdir().unwrap();
    let server = configured(directory.path(), r#"authorization { token: "t0ken" }"#);
    works(with_auth(&server, Auth::Token("t0ken".to_owned()))).await;
    let mut by_address = server.options("admission");
    by_address.servers = vec![server.url.replace("nats://", "nats://t0ken@")];
    works(by_address).await;
    is_refused(with_auth(&server, Auth::Token("other".to_owned())), "refuses the token").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_nkey_lets_in() {
    let (directory, user) = (tempfile::tempdir().unwrap(), KeyPair::new_user());
    let text = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", user.public_key());
    let server = configured(directory.path(), &text);
    let seed = user.seed().unwrap();
    works(with_auth(&server, Auth::NkeySeed(seed.clone()))).await;
    // As it is read from a file.
    works(with_auth(&server, Auth::NkeySeed(format!("{seed}\n")))).await;
    let stranger = KeyPair::new_user().seed().unwrap();
    is_refused(with_auth(&server, Auth::NkeySeed(stranger)), "add its public key").await;
    is_refused(with_auth(&server, Auth::NkeySeed("SUnonsense".to_owned())), "seed is not valid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_lets_in() {
    let (directory, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let config = operator.configure(directory.path(), true);
    let server = Server::own_with(&["-c", config.to_str().unwrap()]);
    let with_file = |path: PathBuf| with_auth(&server, Auth::CredentialsFile(path));
    works(with_file(credentials(&operator.account, directory.path()))).await;
    let stranger = credentials(&KeyPair::new_account(), directory.path());
    is_refused(with_file(stranger), "the server knows its account").await;
    is_refused(with_file(directory.path().join("missing.creds")), "missing.creds cannot be used").await;
    is_refused(with_file(config), "a user's JWT and nkey seed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_jetstream_is_refused() {
    let (directory, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let config = operator.configure(directory.path(), false);
    let server = Server::own_with(&["-c", config.to_str().unwrap()]);
    let file = credentials(&operator.account, directory.path());
    is_refused(with_auth(&server, Auth::CredentialsFile(file)), "give the account JetStream limits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_trusted_authority_is_taken_and_no_other() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let server = configured(authority.path(), &certified(&authority, "127.0.0.1", ""));
    works(with_tls(&server, trusting(&authority))).await;
    // Each of several files counts.
    let both = Tls { root_certificates: vec![authority.root(), other.root()], ..Tls::default() };
    works(with_tls(&server, both)).await;
    let mut by_address = with_tls(&server, trusting(&authority));
    by_address.servers = vec![server.url.replace("nats://", "tls://")];
    works(by_address).await;
    is_refused(with_tls(&server, trusting(&other)), "name the file of the authority").await;
    // This server demands TLS of a client that does not.
    is_refused(with_tls(&server, Tls::default()), "name the file of the authority").await;
    is_refused(with_tls(&server, Tls { required: true, ..Tls::default() }), "tls.root_certificates").await;
    let missing = Tls { root_certificates: vec!["/nowhere/ca.pem".into()], ..Tls::default() };
    is_refused(with_tls(&server, missing), "/nowhere/ca.pem cannot be used").await;
    let no_certificate = Tls { root_certificates: vec![authority.path().join("server.conf")], ..Tls::default() };
    is_refused(with_tls(&server, no_certificate), "it holds none").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_host_is_refused() {
    let authority = Authority::new("ours");
    let server = configured(authority.path(), &certified(&authority, "nats.example", ""));
    is_refused(with_tls(&server, trusting(&authority)), "connect by a name that the server's certificate holds").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_when_tls_is_demanded() {
    let (server, authority) = (Server::own(), Authority::new("ours"));
    let turn_on = "the server does not offer TLS";
    // Certificates alone demand it: otherwise whoever sits between could switch it off unseen.
    is_refused(with_tls(&server, trusting(&authority)), turn_on).await;
    is_refused(with_tls(&server, Tls { required: true, ..trusting(&authority) }), turn_on).await;
    let mut by_address = server.options("admission");
    by_address.servers = vec![server.url.replace("nats://", "tls://")];
    is_refused(by_address, turn_on).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_a_client_certificate_is_given_one() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let verify = format!("ca_file: {:?}, verify: true", authority.root());
    let server = configured(authority.path(), &certified(&authority, "127.0.0.1", &verify));
    let showing = |Certificate { certificate, key }| {
        let client_certificate = Some(ClientCertificate { certificate, key });
        Tls { client_certificate, ..trusting(&authority) }
    };
    works(with_tls(&server, showing(authority.certify("worker")))).await;
    let advice = "in tls.client_certificate";
    is_refused(with_tls(&server, trusting(&authority)), advice).await;
    is_refused(with_tls(&server, showing(other.certify("worker"))), advice).await;
    let mut mixed = authority.certify("one");
    mixed.key = authority.certify("two").key;
    is_refused(with_tls(&server, showing(mixed)), "do not belong together").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_travel_encrypted_when_both_are_asked_for() {
    let authority = Authority::new("ours");
    let text = certified(&authority, "127.0.0.1", "") + r#"authorization { user: "ann", password: "pass" }"#;
    let server = configured(authority.path(), &text);
    let options = JetStreamOptions { tls: trusting(&authority), ..with_auth(&server, user_password("ann", "pass")) };
    works(options.clone()).await;
    is_refused(JetStreamOptions { auth: user_password("ann", "other"), ..options }, "check name and password").await;
}

#[tokio::test]
async fn an_absent_server_is_told_with_its_address_and_no_password() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_at = silent.local_addr().unwrap().to_string();
    for (place, cause, seconds) in
        [(free.as_str(), "refused", 5), ("nowhere.invalid:4222", "", 20), (silent_at.as_str(), "", 20)]
    {
        let begun = std::time::Instant::now();
        let secret = format!("nats://ann:s3cret@{place}");
        let absent = JetStreamBroker::connect(JetStreamOptions::new(&secret)).await.err();
        let Some(Error::Unavailable(why)) = absent else { panic!("{absent:?}") };
        assert!(why.contains(place) && why.contains(cause) && why.contains("check host and port"), "{why}");
        assert!(!why.contains("s3cret") && !format!("{:?}", why.source()).contains("s3cret"), "{why}");
        assert!(cause != "refused" || why.cause::<std::io::Error>().is_some(), "{why}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(seconds), "{place}: {:?}", begun.elapsed());
    }
    drop(silent);
}

#[test]
fn secrets_are_not_shown() {
    let mut options = JetStreamOptions::new("tls://ann:s3cret@nats:4222");
    options.servers.push("nats://s3cret@nats:4222".to_owned());
    let all =
        [Auth::None, user_password("ann", "s3cret"), Auth::Token("s3cret".into()), Auth::NkeySeed("s3cret".into())];
    for auth in all {
        let shown = format!("{:?}", JetStreamOptions { auth, ..options.clone() });
        assert!(!shown.contains("s3cret") && shown.contains("nats:4222"), "{shown}");
    }
}
