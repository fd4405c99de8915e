//! The brokers under test: two ends of one broker, which may be two connections or one object.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outlast_broker::Broker;
use outlast_broker::in_process::InProcessBroker;

use crate::server::{Connects as _, Server};

/// Makes a test of each case for each broker.
macro_rules! on_every_broker {
    ($($case:ident),+ $(,)?) => {
        mod in_process {
            $(#[tokio::test] async fn $case() { super::$case(crate::world::World::in_process().await).await; })+
        }
        mod jetstream {
            $(#[tokio::test] async fn $case() { super::$case(crate::world::World::jetstream().await).await; })+
        }
    };
}
pub(crate) use on_every_broker;

/// Two ends of one broker.
pub(crate) struct World {
    pub(crate) here: Arc<dyn Broker>,
    pub(crate) there: Arc<dyn Broker>,
    /// Ends after the brokers.
    _server: Option<Server>,
}

impl World {
    /// One object stands for both ends.
    #[expect(clippy::unused_async, reason = "the worlds are made alike")]
    pub(crate) async fn in_process() -> Self {
        let broker: Arc<dyn Broker> = Arc::new(InProcessBroker::new());
        Self { here: Arc::clone(&broker), there: broker, _server: None }
    }

    /// Two connections to one server.
    pub(crate) async fn jetstream() -> Self {
        let server = Server::any();
        let namespace = namespace();
        let (here, there) = (server.broker(&namespace).await, server.broker(&namespace).await);
        Self { here: Arc::new(here), there: Arc::new(there), _server: Some(server) }
    }
}

/// One that no other test uses, nor any before on the same server.
pub(crate) fn namespace() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    format!("t{}-{now}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
