//! The fixture of the real stores, with the simulated one in their place.

#[expect(dead_code, unused_macros, unused_imports, reason = "the suite of the real stores has tests of its own")]
#[path = "../../../storage/tests/it/fixture.rs"]
mod real;

use std::time::Duration;

use outlast_chaos_tests::store::{Options, SimulatedServer, SimulatedStore};

pub(crate) use real::{
    Database, Owner, commit_one, completed, enqueue, event, history, id, inbox, is_committed, join, raise, start,
    start_message, state, status_updated,
};

/// Makes a test of each case.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod simulated {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(&crate::fixture::simulated()).await;
            })*
        }
    };
}
pub(crate) use on_every_store;

/// Longer than any test, as its owners do not renew.
pub(crate) const LEASE: Duration = Duration::from_secs(600);

pub(crate) fn simulated() -> SimulatedStore {
    SimulatedServer::new(Options { lease: LEASE, ..Options::default() }).connect()
}
