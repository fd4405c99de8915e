//! Databases in files: who may open which.

use std::sync::Arc;

use outlast::OrchestrationRegistry;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;

use crate::world::{activities, options};

#[tokio::test]
async fn a_second_process_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let url = format!("sqlite:{}", path.display());
    let provider = Arc::new(SqliteProvider::new(&url, None).await.unwrap());
    // What another process would hold.
    let lock = std::fs::File::create(dir.path().join("db.runtime-lock")).unwrap();
    lock.lock().unwrap();
    let (a, o) = (activities().build(), OrchestrationRegistry::builder().build());
    let Err(refused) = Runtime::try_start(provider, a, o, options()).await else { panic!("two runtimes on one file") };
    assert!(refused.to_string().contains("another process"), "{refused}");
}

#[tokio::test]
async fn a_path_is_taken_as_it_is_and_a_url_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("what? #1.db");
    SqliteProvider::new(path.to_str().unwrap(), None).await.unwrap();
    assert!(path.exists());
    for url in ["", "sqlite:", "postgres://localhost/x", "sqlite:db?cache=shared"] {
        let refused = SqliteProvider::new(url, None).await.map(|_| ());
        assert!(refused.unwrap_err().to_string().contains("use sqlite:PATH"), "{url}");
    }
}
