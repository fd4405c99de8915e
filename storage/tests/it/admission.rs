//! Whom Postgres lets in, and whom a store trusts. Servers are the tests' own.

use std::path::Path;

use outlast_storage::postgres::{PostgresOptions, PostgresStore};
use outlast_storage::{Error, TurnStore};
use outlast_test_support::{Authority, Certificate, PostgresServer};

use crate::fixture::{LEASE, id, start};

fn options() -> PostgresOptions {
    PostgresOptions { lease: LEASE, connections: 2, ..PostgresOptions::default() }
}

async fn works(url: &str) {
    let store = PostgresStore::connect(url, options()).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    start(&store, "a").await;
    assert!(store.load(&id("a")).await.unwrap().is_some());
}

/// Waiting would not help, and the text says what does, without the password.
async fn is_refused(url: &str, advice: &str) {
    match PostgresStore::connect(url, options()).await {
        Err(Error::Unusable(why)) => {
            assert!(why.contains(advice), "{url}: {why:?} does not say {advice:?}");
            assert!(!why.contains("s3cret"), "{why}");
        }
        Err(other) => panic!("{url}: {other:?}"),
        Ok(_) => panic!("{url} is let in"),
    }
}

fn trusting(root: &Path, mode: &str) -> String {
    format!("sslmode={mode}&sslrootcert={}", root.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_trusted_authority_is_taken_and_no_other() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let server = PostgresServer::certified(&authority, "127.0.0.1");
    let full = server.url_with(&trusting(&authority.root(), "verify-full"));
    works(&full).await;
    works(&server.url_with("sslmode=require")).await;
    is_refused(&server.url_with(&trusting(&other.root(), "verify-full")), "authority of its certificate").await;
    is_refused(&server.url_with("sslmode=verify-full"), "authority of its certificate").await;
    // The certificate is for the address alone.
    let by_name = full.replace("127.0.0.1", "localhost");
    is_refused(&by_name, "host name of the URL").await;
    works(&by_name.replace("verify-full", "verify-ca")).await;
    is_refused(&full.replace("s3cret", "wr0ng"), "check user, password").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_would_not_count_is_refused_and_so_is_a_file_that_cannot_be_read() {
    let authority = Authority::new("ours");
    let url = |query: &str| format!("postgres://outlast:s3cret@127.0.0.1:1/postgres?{query}");
    for mode in ["require", "prefer", "allow", "disable"] {
        is_refused(&url(&trusting(&authority.root(), mode)), "only with sslmode=verify-full").await;
    }
    is_refused(&url("sslmode=verify-full&sslrootcert=/nowhere/ca.pem"), "/nowhere/ca.pem of the Postgres URL").await;
    is_refused(&url("sslcert=/nowhere/client.crt"), "check path and rights").await;
    is_refused(&url("sslmode=verify-fully"), "URL is not valid").await;
    is_refused("postgres://outlast:s3cret@127.0.0.1:port/postgres", "URL is not valid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_when_tls_is_demanded() {
    let (server, authority) = (PostgresServer::plain(), Authority::new("ours"));
    works(&server.url_with("")).await;
    is_refused(&server.url_with("sslmode=require"), "check that the server offers TLS").await;
    is_refused(&server.url_with(&trusting(&authority.root(), "verify-full")), "check that the server offers TLS").await;
    is_refused(&server.url_with("").replace("s3cret", "wr0ng"), "check user, password").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_let_in_by_its_certificate() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let server = PostgresServer::certified(&authority, "127.0.0.1");
    // A pool waits while the server is starting.
    let db = sqlx::PgPool::connect(&server.url_with("sslmode=require")).await.unwrap();
    sqlx::query("CREATE ROLE certified LOGIN SUPERUSER").execute(&db).await.unwrap();
    let url = |files: Option<Certificate>| {
        let query = trusting(&authority.root(), "verify-full");
        let shown =
            files.map(|files| format!("&sslcert={}&sslkey={}", files.certificate.display(), files.key.display()));
        server.url_with(&(query + &shown.unwrap_or_default())).replace("outlast:s3cret", "certified")
    };
    works(&url(Some(authority.certify("certified")))).await;
    is_refused(&url(None), "client certificate").await;
    is_refused(&url(Some(authority.certify("somebody"))), "client certificate").await;
    is_refused(&url(Some(other.certify("certified"))), "sslcert and sslkey").await;
}

/// Of what cannot be reached, the address and the cause are told at once; of what does not answer, after some seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_reached_is_told_at_once_with_its_address_and_no_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_at = silent.local_addr().unwrap();
    let nonsense = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nonsense_at = nonsense.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in nonsense.incoming() {
            std::io::Write::write_all(&mut stream.unwrap(), b"INFO {}\r\n").unwrap();
        }
    });
    let at = |place: &str| format!("postgres://outlast:s3cret@{place}/postgres");
    let cases = [
        (at(&free.to_string()), free.to_string(), "refused", 5),
        (at("nowhere.invalid:5432"), "nowhere.invalid:5432".to_owned(), "", 20),
        (at(&silent_at.to_string()), silent_at.to_string(), "no answer", 20),
        (at(&nonsense_at.to_string()), nonsense_at.to_string(), "", 5),
    ];
    for (url, place, cause, seconds) in cases {
        let begun = std::time::Instant::now();
        let Err(Error::Unavailable(why)) = PostgresStore::connect(&url, options()).await else { panic!("{url}") };
        assert!(begun.elapsed() < std::time::Duration::from_secs(seconds), "{url}: {:?}", begun.elapsed());
        assert!(why.contains(&place) && why.contains(cause) && why.contains("check host and port"), "{url}: {why}");
        assert!(!why.contains("s3cret"), "{why}");
    }
    drop(silent);
}

#[tokio::test]
async fn an_address_that_is_none_is_unusable() {
    for url in ["postgres:/bad", "postgres:bad", "bad", "", "mysql://db/x", "http://db", "postgres://db:port/x"] {
        is_refused(url, "URL is not valid").await;
    }
}
