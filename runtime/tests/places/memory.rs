//! SQLite in memory and the in-process broker.

use std::sync::Arc;

use outlast::providers::Provider;
use outlast::providers::sqlite::SqliteProvider;
use tokio::sync::OnceCell;

/// Where a test runs.
#[derive(Default)]
pub(crate) struct Place {
    provider: OnceCell<Arc<SqliteProvider>>,
}

impl Place {
    /// The provider, anew after a restart; what is in memory stays.
    pub(crate) async fn open(&self) -> Arc<dyn Provider> {
        let open = async || Arc::new(SqliteProvider::new_in_memory().await.unwrap());
        self.provider.get_or_init(open).await.clone()
    }
}
