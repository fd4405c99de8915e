//! The simulated broker, in the place of the real ones.

use std::sync::Arc;

use outlast_broker::Broker;
use outlast_chaos_tests::broker::SimulatedBrokerServer;

/// Makes a test of each case.
macro_rules! on_every_broker {
    ($($case:ident),+ $(,)?) => {
        mod simulated_broker {
            $(#[tokio::test] async fn $case() { super::$case(crate::world::World::simulated()).await; })+
        }
    };
}
pub(crate) use on_every_broker;

/// Two ends of one broker.
pub(crate) struct World {
    pub(crate) here: Arc<dyn Broker>,
    pub(crate) there: Arc<dyn Broker>,
}

impl World {
    pub(crate) fn simulated() -> Self {
        let server = SimulatedBrokerServer::new(1, 1 << 20);
        Self { here: Arc::new(server.connect()), there: Arc::new(server.connect()) }
    }
}
