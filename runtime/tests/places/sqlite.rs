//! A SQLite file and the in-process broker.

use std::sync::Arc;

use outlast::providers::Provider;
use outlast::providers::sqlite::SqliteProvider;

/// Where a test runs.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Default for Place {
    fn default() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }
}

impl Place {
    /// The provider, anew after a restart.
    pub(crate) async fn open(&self) -> Arc<dyn Provider> {
        let path = self.directory.path().join("db");
        Arc::new(SqliteProvider::new(path.to_str().unwrap(), None).await.unwrap())
    }
}
