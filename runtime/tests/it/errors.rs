//! Goal: a program that knows `outlast` alone can tell its failures apart, down to the error of the library behind them.
//! Method: real failures of real stores, matched by their types.

use std::error::Error;
use std::io::{self, ErrorKind};

use outlast::providers::cluster::{ClusterOptions, ClusterProvider};
use outlast::providers::sqlite::SqliteProvider;
use outlast::providers::{ConnectError, StoreError};
use outlast::runtime::{Runtime, StartError};
use outlast::{ActivityRegistry, Client, ClientError, OrchestrationRegistry, RefusedOption, RuntimeOptions};

/// The first error of this type among an error's sources.
fn source_of<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let source = error.source()?;
    source.downcast_ref().or_else(|| source_of(source))
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_with_the_error_of_its_socket() {
    let options = ClusterOptions::new("postgres://me@127.0.0.1:1/db", "nats://127.0.0.1:1");
    let refused = ClusterProvider::connect(options).await.err().unwrap();
    assert!(matches!(&refused, ConnectError::Store(StoreError::Unavailable(_))), "{refused:?}");
    let socket: &io::Error = source_of(&refused).unwrap();
    assert_eq!(socket.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn an_option_that_cannot_work_is_told_by_its_name() {
    let mut options = ClusterOptions::new("postgres://me@127.0.0.1:1/db", "nats://127.0.0.1:1");
    options.postgres.shards = 0;
    let refused = ClusterProvider::connect(options).await.err().unwrap();
    let ConnectError::Store(StoreError::Unusable(why)) = &refused else { panic!("{refused:?}") };
    assert!(why.cause::<RefusedOption>().is_some_and(|option| option.to_string().contains("shards")), "{why}");

    let provider = std::sync::Arc::new(SqliteProvider::new_in_memory().await.unwrap());
    let (activities, orchestrations) = (ActivityRegistry::builder().build(), OrchestrationRegistry::builder().build());
    let options = RuntimeOptions { max_sessions_per_runtime: 0, ..RuntimeOptions::default() };
    let refused = Runtime::try_start(provider, activities, orchestrations, options).await.err().unwrap();
    assert!(matches!(&refused, StartError::Option(_)), "{refused:?}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_told_with_the_error_of_the_library() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("db");
    std::fs::write(&file, "no database, but long enough to be looked at as one".repeat(100)).unwrap();
    let refused = SqliteProvider::new(&file.display().to_string(), None).await.err().unwrap();
    let StoreError::Unusable(why) = &refused else { panic!("{refused:?}") };
    assert!(why.cause::<rusqlite::Error>().is_some(), "{why}");

    let below = file.join("db").display().to_string();
    let refused = SqliteProvider::new(&below, None).await.err().unwrap();
    assert_eq!(source_of::<io::Error>(&refused).map(io::Error::kind), Some(ErrorKind::NotADirectory), "{refused}");
}

#[tokio::test]
async fn a_call_whose_database_is_damaged_is_told_with_the_error_of_the_library() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("db");
    let provider = std::sync::Arc::new(SqliteProvider::new(&file.display().to_string(), None).await.unwrap());
    rusqlite::Connection::open(&file).unwrap().execute_batch("ALTER TABLE kv RENAME TO lost").unwrap();
    let options = outlast::ClientOptions { call_timeout: std::time::Duration::from_millis(100), ..Default::default() };
    let client = Client::with_options(provider, options);
    let failed = client.get_kv_all_values("i").await.unwrap_err();
    let ClientError::Provider(provider) = &failed else { panic!("{failed:?}") };
    assert!(provider.is_retryable() && source_of::<rusqlite::Error>(&failed).is_some(), "{failed:?}");
    let unknown = client.get_instance_info("i").await.unwrap_err();
    assert!(matches!(&unknown, ClientError::InstanceNotFound { instance_id } if instance_id == "i"), "{unknown:?}");
}
