//! Asking the owner of a shard that is in this process.

use tokio::sync::{mpsc, oneshot};

use crate::ShardMessage;

/// Sends an owner a message that it answers, at once and not only when the answer is awaited; `None` if it is gone or goes.
pub(crate) fn ask_owner<T>(
    owner: mpsc::UnboundedSender<ShardMessage>,
    message: impl FnOnce(oneshot::Sender<T>) -> ShardMessage,
) -> impl Future<Output = Option<T>> {
    let (answer, answered) = oneshot::channel();
    let _gone = owner.send(message(answer));
    async move {
        // A message that is sent while its receiver is being dropped stays in the channel, and so does the answer's sender.
        tokio::select! {
            biased;
            answer = answered => answer.ok(),
            () = owner.closed() => None,
        }
    }
}
