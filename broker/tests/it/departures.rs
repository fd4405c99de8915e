//! An owner that goes away while it is asked leaves nobody waiting. Real threads, since the order of a few instructions decides.

use std::sync::Arc;

use outlast_broker::in_process::InProcessBroker;
use outlast_broker::{Broker as _, Report, ReportResult, ShardRequest};
use outlast_core::{ShardId, Token};
use tokio::sync::{Barrier, mpsc};
use tokio::time::timeout;

use crate::items::{SOON, key};

const ROUNDS: usize = 20_000;

/// Guarantee 7: without an owner there is no answer, and the worker asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_owner_that_goes_while_it_is_asked_leaves_nobody_waiting() {
    let broker = Arc::new(InProcessBroker::new());
    for round in 0..ROUNDS {
        let (owner, messages) = mpsc::unbounded_channel();
        broker.own(&[ShardId(0)], owner).await.unwrap();
        let barrier = Arc::new(Barrier::new(2));
        let (asking, at) = (Arc::clone(&broker), Arc::clone(&barrier));
        let request = tokio::spawn(async move {
            at.wait().await;
            asking.request(ShardId(0), ShardRequest::Report(Box::new(report()))).await
        });
        barrier.wait().await;
        drop(messages);
        let replies = timeout(SOON, request).await;
        assert!(replies.is_ok(), "round {round}: nobody answers, and the worker waits for it");
    }
}

fn report() -> Report {
    Report { key: key("a", 1), token: Token(1), result: ReportResult::Unregistered { activity: "charge".to_owned() } }
}
