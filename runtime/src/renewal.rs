//! Renewing leases, on a thread that all nodes of the process share and nothing else uses.
//!
//! User code may keep every thread of its executor busy for longer than a lease. What a renewal shows is acted upon by
//! `membership`, on the executor; the renewal itself waits for nobody.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use outlast_storage::{Error, LeaseView};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::node::Node;
use crate::observability::RUNTIME;

/// Longest time between two renewals; a lease is renewed three times in its life.
const RENEW_EVERY_MAX: Duration = Duration::from_millis(500);
/// Between two renewals of a lease that cannot end: it lies in memory, and looking is how others' leaving is seen.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pause after a renewal that failed.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A renewal that succeeded.
#[derive(Clone)]
pub(crate) struct Renewal {
    /// When the store was asked.
    pub(crate) sent: Instant,
    pub(crate) view: LeaseView,
}

/// The thread. It lasts as long as the process, because a connection to the store belongs to the executor that made it and the
/// nodes of a process come and go.
fn thread() -> &'static Runtime {
    static THREAD: OnceLock<Runtime> = OnceLock::new();
    THREAD.get_or_init(|| {
        let mut thread = tokio::runtime::Builder::new_multi_thread();
        thread.worker_threads(1).thread_name("outlast-renewal").enable_all();
        thread.build().expect("a process that starts a node can start a thread")
    })
}

/// Renews at once, then again and again until the node stops; returns what each renewal shows, beginning with the first.
pub(crate) async fn begin(node: &Arc<Node>) -> Result<watch::Receiver<Renewal>, Error> {
    let first = thread().spawn(renew(Arc::clone(node))).await;
    let first = first.unwrap_or_else(|_| Err(Error::Unavailable("the renewal of the lease panicked".to_owned())))?;
    let (renewals, shown) = watch::channel(first);
    thread().spawn(keep_renewing(Arc::clone(node), renewals));
    Ok(shown)
}

async fn keep_renewing(node: Arc<Node>, renewals: watch::Sender<Renewal>) {
    let mut pause = pause_of(&renewals.borrow().view);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.stopping.cancelled() => return,
        }
        match renew(Arc::clone(&node)).await {
            Ok(renewal) => {
                pause = pause_of(&renewal.view);
                renewals.send_replace(renewal);
            }
            Err(error) => {
                tracing::warn!(target: RUNTIME, %error, "the lease could not be renewed, trying again");
                pause = AGAIN_AFTER;
            }
        }
    }
}

async fn renew(node: Arc<Node>) -> Result<Renewal, Error> {
    let sent = Instant::now();
    let view = node.store.renew(&node.id).await?;
    node.renewed(sent, view.lease);
    Ok(Renewal { sent, view })
}

fn pause_of(view: &LeaseView) -> Duration {
    if view.lease == Duration::MAX { LOOK_EVERY } else { (view.lease / 3).min(RENEW_EVERY_MAX) }
}
