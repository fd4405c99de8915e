//! Threads for what must not wait behind user code: each is an executor of its own, shared by all nodes of the process.
//!
//! They last as long as the process, because a connection to the store belongs to the executor that made it, and the nodes of a
//! process come and go.

use std::sync::OnceLock;

use outlast_client::Surroundings;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Renews leases and does nothing else: user code may keep every other thread busy for longer than a lease.
pub(crate) static RENEWALS: DedicatedThread = DedicatedThread::new("outlast-renewal");
/// Commits: elsewhere they would queue behind thousands of turns that become due at once.
pub(crate) static COMMITS: DedicatedThread = DedicatedThread::new("outlast-commit");

/// A thread that is started when it is first used.
pub(crate) struct DedicatedThread {
    name: &'static str,
    executor: OnceLock<Runtime>,
}

impl DedicatedThread {
    const fn new(name: &'static str) -> Self {
        Self { name, executor: OnceLock::new() }
    }

    /// A simulation runs everything on one thread.
    pub(crate) fn spawn<F>(&self, surroundings: &Surroundings, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        if !surroundings.is_system() {
            return surroundings.spawn(future);
        }
        let executor = self.executor.get_or_init(|| {
            let mut executor = Builder::new_multi_thread();
            executor.worker_threads(1).thread_name(self.name).enable_all();
            executor.build().expect("a process that starts a node can start a thread")
        });
        executor.spawn(future)
    }
}
