//! Whether a node can be given work, as far as it knows.

use std::time::Duration;

use thiserror::Error;

use crate::node::Node;

/// A store that answers no renewal for this long is away; renewals are sent at least every half second.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Why a node cannot be given work now.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NotReady {
    /// It is stopping, or has stopped.
    #[error("the node is stopping")]
    Stopping,
    /// Its lease has ended and was not renewed.
    #[error("the lease is lost")]
    LeaseLost,
    /// The store has not answered lately.
    #[error("the store has not answered for {0:?}")]
    StoreSilent(Duration),
    /// One of its tasks fails again and again although it is restarted; the log says why.
    #[error("the node's task \"{0}\" fails again and again")]
    TaskFailing(&'static str),
    /// There is no connection to the broker.
    #[error("the broker is not connected")]
    BrokerAway,
}

impl Node {
    /// Why the node cannot work now, if so.
    pub(crate) fn readiness(&self) -> Result<(), NotReady> {
        if self.owner.stopping.is_cancelled() || self.owner.tenure.is_leaving() {
            return Err(NotReady::Stopping);
        }
        if let Some(task) = self.owner.supervisor.unready_task() {
            return Err(NotReady::TaskFailing(task.name()));
        }
        if !self.owner.tenure.lease_is_steady() {
            return Err(NotReady::LeaseLost);
        }
        let silence = self.owner.tenure.silence();
        if silence > SILENCE_MAX {
            return Err(NotReady::StoreSilent(silence));
        }
        if !self.owner.broker.state().is_connected { Err(NotReady::BrokerAway) } else { Ok(()) }
    }
}
