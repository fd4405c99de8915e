//! Brokers on a server.

use outlast_broker::jetstream::{JetStreamBroker, JetStreamOptions};
pub(crate) use outlast_test_support::NatsServer as Server;

/// Connects to a server.
pub(crate) trait Connects {
    fn options(&self, namespace: &str) -> JetStreamOptions;

    async fn broker(&self, namespace: &str) -> JetStreamBroker;
}

impl Connects for Server {
    fn options(&self, namespace: &str) -> JetStreamOptions {
        JetStreamOptions { namespace: namespace.to_owned(), ..JetStreamOptions::new(&self.url) }
    }

    async fn broker(&self, namespace: &str) -> JetStreamBroker {
        JetStreamBroker::connect(self.options(namespace)).await.unwrap()
    }
}
